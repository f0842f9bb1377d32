"""Files of more than 8 bits a sample, and TIFF layouts that Pillow does not read: tifffile for TIFF, OpenCV for PNG."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags

from face2scene.common.optional import import_optional
from face2scene.image_io.attachments import stack_size
from face2scene.image_io.metadata import Metadata, byte_order, into_tiff

REDUCED = 1 | 4  # of TIFF's NewSubfileType: a copy of another page at a lower resolution, or a mask of it
_SIGNED, _ASSOCIATED, _UNASSOCIATED, _SEPARATE = 2, 1, 2, 2  # values of TIFF's tags
_COLOURS = {0: 1, 1: 1, 2: 3}  # by photometric interpretation: white is zero, black is zero, RGB


class ImageError(ValueError):
    """A file that cannot be used as an image; the message names the file and the reason."""


class Samples(NamedTuple):
    """Decoded samples as a file stores them: neither turned upright nor converted to sRGB."""

    colour: np.ndarray  # float32 (H, W, 1 or 3) in [0, 1], not multiplied by alpha
    alpha: np.ndarray | None = None  # float32 (H, W)
    bits: int = 8


def check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    """Refuse an image of (width, height) without pixels or above the limit.

    Raises:
        ImageError: no pixels, or more than `max_pixels`.
    """
    width, height = size
    if width * height == 0:
        raise ImageError(f"{path} has {width} x {height} pixels.")
    if width * height > max_pixels:
        raise ImageError(
            f"{path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million (max_pixels)."
        )


_PHOTOMETRIC, _INK_SET, _WEBP = ExifTags.Base.PhotometricInterpretation, 332, 50001
_YCBCR, _UNCOMPRESSED = 6, 1
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def check_layout(path: Path, tags: Any) -> None:
    """Refuse a TIFF whose tags (Pillow's or tifffile's) leave the meaning of its samples open.

    Raises:
        ImageError: other inks than CMYK; no photometric interpretation, except of one bit (a fax).
    """
    if _PHOTOMETRIC not in tags and np.max(_value(tags, ExifTags.Base.BitsPerSample)) > 1:
        raise ImageError(f"{path} cannot be read: it does not say its photometric interpretation.")
    if _value(tags, _INK_SET) != 1:
        raise ImageError(f"{path} cannot be read: its inks are not cyan, magenta, yellow and black (InkSet).")


def _value(tags: Any, code: int) -> Any:
    value = tags.get(code, 1)
    return getattr(value, "value", value)


def beyond_pillow(image: Any, notes: list[str]) -> bool:
    """Whether tifffile is to read a TIFF that Pillow has opened; `notes` gets a sentence for a damaged directory.

    Pillow reads as declared, but for more than 8 bits a sample, signed and float samples, samples that nothing
    declares, planes with alpha, WebP or raw YCbCr inside, and a damaged directory behind the first.
    """
    tags = image.tag_v2
    depths, formats = (tags.get(tag, (1,)) for tag in (ExifTags.Base.BitsPerSample, ExifTags.Base.SampleFormat))
    kind = (tags.get(_PHOTOMETRIC), tags.get(ExifTags.Base.Compression, _UNCOMPRESSED))
    extra = tags.get(ExifTags.Base.ExtraSamples, ())
    known = _COLOURS.get(kind[0] or 0, 99) + len(extra)
    planes = tags.get(ExifTags.Base.PlanarConfiguration) == _SEPARATE
    try:
        image.n_frames  # noqa: B018 - follows the directories
    except Exception:  # Pillow raises almost anything here
        notes.append("What follows the first page is damaged and left out.")
        return True
    return (
        max(depths) > 8
        or set(formats) != {1}
        or tags.get(ExifTags.Base.SamplesPerPixel, 1) > known
        or (planes and len(extra) > 0 and kind[0] in _COLOURS)
        or kind[1] == _WEBP
        or kind == (_YCBCR, _UNCOMPRESSED)
    )


def read_tiff(path: Path, max_pixels: int) -> tuple[Samples, bytes | None, int, list[str]]:
    """Read the first page of a TIFF, or the first that is no reduced copy of another one, by its declared layout.

    Returns:
        Samples, ICC profile, orientation (1 to 8), and a sentence for whatever was left out.

    Raises:
        ImageError: a layout that is not read, by name; more than `max_pixels` pixels.
        ModuleNotFoundError: without tifffile.
    """
    tifffile = import_optional("tifffile", "photos", why=f"Reading {path.name}")
    notes: list[str] = []
    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        page = next((page for page in pages if not int(page.subfiletype) & REDUCED), pages[0])
        check_size(path, (page.imagewidth, page.imagelength), max_pixels)
        check_layout(path, page.tags)
        count = _COLOURS.get(int(page.photometric))
        if count is None or page.imagedepth != 1 or page.samplesperpixel < count:
            name = getattr(page.photometric, "name", page.photometric)
            raise ImageError(
                f"{path} cannot be read: photometric interpretation {name}, {page.samplesperpixel} samples."
            )
        if not isinstance(page.bitspersample, int):
            raise ImageError(f"{path} cannot be read: its samples differ in depth, {page.bitspersample} bits.")
        stacked = stack_size(page.description, page.imagewidth * page.imagelength * page.samplesperpixel)
        if (further := max(len(pages), stacked) - 1) > 0:
            notes.append(f"{further} further pages are left out.")
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                import_optional("imagecodecs", "photos", why=f"Reading {path.name} ({page.compression.name})")
            raise
        if int(page.planarconfig) == _SEPARATE and values.ndim == 3 and page.samplesperpixel > 1:
            values = np.moveaxis(values, 0, -1)
        values = values.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        tags = {code: page.tags.valueof(code) for code in (274, 281, 700, 34675)}
        extra = [int(value) for value in page.extrasamples]
        extra += [0] * (page.samplesperpixel - count - len(extra))  # undeclared: unspecified
        bits, white_is_zero = page.bitspersample, int(page.photometric) == 0
    values = unit_range(path, values, bits, tags[281], notes)
    colour, alpha = values[..., :count], None
    if white_is_zero:
        colour = 1 - colour
    if extra and extra[0] in (_ASSOCIATED, _UNASSOCIATED):
        alpha = values[..., count]
        if extra[0] == _ASSOCIATED:
            colour = (colour / np.maximum(alpha, 1e-6)[..., None]).clip(0, 1)
        extra = extra[1:]
    if extra:
        notes.append(f"{len(extra)} extra samples a pixel are left out.")
    icc = tags[34675] if isinstance(tags[34675], bytes) else None
    xmp = _XMP_ORIENTATION.search(bytes(tags[700] or b""))
    return Samples(colour, alpha, 8 if bits <= 8 else 16), icc, int(tags[274] or (xmp and xmp[1]) or 1), notes


def unit_range(path: Path, values: np.ndarray, bits: int, top: object, notes: list[str]) -> np.ndarray:
    """Samples to float32 [0, 1].

    Args:
        values: unsigned integers, or floats in [0, 1], of which one in a hundred may lie beyond and is clipped.
        bits: of an integer sample.
        top: TIFF's MaxSampleValue, where it is given.

    Raises:
        ImageError: signed or complex samples, NaN, and values whose range is not declared.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError(f"{path} cannot be read: NaN or infinite samples.")
        beyond = float(np.mean((values > 1) | (values < 0)))
        if beyond > 0.01:
            raise ImageError(
                f"{path} cannot be read: float samples must lie in [0, 1], these go from {values.min():g} to "
                f"{values.max():g}. Divide them by their white."
            )
        if beyond:
            notes.append("Float samples beyond [0, 1] are clipped.")
        return values.astype(np.float32).clip(0, 1)
    if values.dtype.kind != "u":
        raise ImageError(f"{path} cannot be read: samples of type {values.dtype}, only unsigned and float are.")
    declared = max(top) if isinstance(top, tuple) else top
    white = int(declared) if isinstance(declared, int) and declared > 0 else 2**bits - 1
    if not declared and bits == 16 and 0 < values.max() <= 4095:
        raise ImageError(
            f"{path} cannot be read: no sample is above {values.max()} of 65535, as of 8 or 12 bits in 16, and no "
            "MaxSampleValue says which."
        )
    return (values / (np.float64(white) if bits > 16 else np.float32(white))).clip(0, 1).astype(np.float32)


def read_png(path: Path) -> Samples:
    """Read a 16-bit PNG with colour or alpha.

    Raises:
        ImageError: OpenCV cannot read it.
        ModuleNotFoundError: without OpenCV.
    """
    cv2 = import_optional("cv2", "photos", why=f"Reading 16 bits of {path.name}")
    data = path.read_bytes()
    levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 3:
        raise ImageError(f"{path} cannot be read as a 16-bit image.")
    values = levels.astype(np.float32) / 65535
    colour = values[..., :1] if data[25] == 4 else values[..., 2::-1]  # IHDR's colour type 4: grey with alpha
    return Samples(colour, values[..., 3] if values.shape[2] == 4 else None, 16)


def read_heif(content: bytes) -> Samples:
    """The primary image of a HEIC of more than 8 bits a channel, upright."""
    file = import_optional("pillow_heif", "photos", why="Reading a HEIC").open_heif(content, convert_hdr_to_8bit=False)
    values = np.asarray(file).astype(np.float32) / 65535  # 10 and 12 bits are scaled to 16
    values = values.reshape(*values.shape[:2], -1)
    alpha = values[..., -1] if file.has_alpha else None
    return Samples(values[..., : 3 if values.shape[2] > 2 else 1], alpha, 16)


def convert(values: np.ndarray, source: bytes, target: bytes) -> np.ndarray:
    """Convert float (H, W, 1 or 3) in [0, 1] from one ICC profile to another, by littlecms in float; clipped.

    One channel is converted as three equal ones where the source is not grey.

    Raises:
        ModuleNotFoundError: without imagecodecs.
    """
    cms = import_optional("imagecodecs", "photos", why="Converting more than 8 bits by a colour profile")
    spaces = [{b"GRAY": "gray"}.get(profile[16:20], "rgb") for profile in (source, target)]
    values = np.ascontiguousarray(values.clip(0, 1), dtype=np.float32)
    if values.shape[2] == 1 and spaces[0] == "rgb":
        values = np.repeat(values, 3, axis=2)
    values = values.squeeze(2) if values.shape[2] == 1 else values
    converted = cms.cms_transform(values, source, target, colorspace=spaces[0], outcolorspace=spaces[1])
    return converted.reshape(*values.shape[:2], -1).clip(0, 1)


def encode_tiff(levels: np.ndarray, kept: Metadata, icc: bytes | None) -> bytes:
    """A deflated TIFF of uint8 or uint16 levels (H, W, 1 to 4), the even counts with alpha."""
    count = levels.shape[2]
    buffer = io.BytesIO()
    import_optional("tifffile", "photos", why="Writing a TIFF").imwrite(
        buffer,
        levels[..., 0] if count == 1 else levels,
        photometric="rgb" if count > 2 else "minisblack",
        planarconfig="contig" if count > 1 else None,
        extrasamples=["unassalpha"] if count % 2 == 0 else None,
        compression="zlib",
        metadata=None,
        software=False,
        byteorder=byte_order(kept.exif),
        bigtiff=False,
        iccprofile=icc,
        resolution=kept.dpi,
        resolutionunit=2 if kept.dpi else None,
        extratags=[
            (281, "H", count, (2 ** (8 * levels.itemsize) - 1,) * count, True),
            *(
                (tag, kind, len(value), value, True)
                for tag, kind, value in ((700, 1, kept.xmp), (33723, 7, kept.iptc))
                if value
            ),
        ],
    )
    return into_tiff(buffer.getvalue(), kept.exif)


def encode_png(levels: np.ndarray, with_profile: bool = False) -> bytes:
    """A PNG of uint16 levels (H, W, 1 to 4), the even counts with alpha; grey with alpha as colour if no profile is."""
    if with_profile and levels.shape[2] == 2:  # OpenCV writes none, and a grey profile fits no colour
        return import_optional("imagecodecs", "photos", why="Writing a grey PNG with alpha").png_encode(levels)
    cv2 = import_optional("cv2", "photos", why="Writing a 16-bit PNG")
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[levels.shape[2]]
    ok, encoded = cv2.imencode(".png", np.ascontiguousarray(levels[..., order]))
    if not ok:
        raise ImageError("OpenCV could not write a 16-bit PNG.")
    return encoded.tobytes()
