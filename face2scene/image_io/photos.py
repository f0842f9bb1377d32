"""Photo files: their pixels, and what else they hold, which is kept and put back on writing.

Inside, every image is float32 RGB in [0, 1], upright, in sRGB. What a file may have and a network does not use is a
field of `Photo`: transparency, 16 bits, a colour profile, being grey, metadata.
"""

import contextlib
import io
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError
from scipy import ndimage

from face2scene.common.files import atomic_write
from face2scene.common.optional import import_optional
from face2scene.image_io import deep
from face2scene.image_io.attachments import (
    is_heif,
    kind_of,
    lacks_data,
    left_out,
    turn_of_heif,
    without_damaged_parts,
)
from face2scene.image_io.deep import ImageError, Samples, check_size
from face2scene.image_io.metadata import (
    OPENED,
    Metadata,
    for_pillow,
    for_size,
    into_png,
    is_dng,
    metadata_of,
    tiff_metadata,
)
from face2scene.image_io.profiles import (
    colour_space,
    convert,
    declared_profile,
    other_profile,
    profile_of,
    quantize,
    srgb,
    to_srgb,
)
from face2scene.image_io.raw import Development, RawError, develop

LOG = logging.getLogger(__name__)

# Of LibRaw's cameras; not `.raw`, which is also samples without a header.
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
HEIF_SUFFIXES = (".heic", ".heif")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *HEIF_SUFFIXES,
    *RAW_SUFFIXES,
)
MAX_PIXELS = 200_000_000  # our setting: a larger file is more often a bomb than a photo
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
JPEG_QUALITY = 95  # ours; of WebP too
NEUTRAL = 2 / 255  # ours: channels no farther apart are one grey; JPEG's rounding stays below
_LONGEST = {"webp": 16383, "jpeg": 65500}  # pixels a side
_DEEP = ("png", "tiff")  # formats that hold 16 bits
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's L


@dataclass(frozen=True, eq=False)
class Photo:
    """An image and what else its file holds."""

    image: np.ndarray  # float32 (H, W, 3) in [0, 1], sRGB, upright; transparency not applied
    alpha: np.ndarray | None = None  # float32 (H, W), 1 is opaque
    bits: int = 8  # per channel: 8 or 16
    grey: bool = False  # one channel in the file
    neutral: bool = False  # three channels that are equal: written as such
    profile: bytes | None = None  # ICC, where it is not sRGB; `image` has been converted from it
    metadata: Metadata = field(default_factory=Metadata)
    warnings: tuple[str, ...] = ()

    def on_white(self) -> np.ndarray:
        """The image with its transparent parts laid on white."""
        if self.alpha is None:
            return self.image
        return self.image * self.alpha[..., None] + (1 - self.alpha[..., None])


def read_photo(path: str | Path, *, max_pixels: int = MAX_PIXELS, development: Development | None = None) -> Photo:
    """Read an image upright and in sRGB, and keep the rest.

    PNG, JPEG, WebP, BMP, GIF, TIFF; AVIF where Pillow has it; HEIC where pillow-heif is installed; camera RAW where
    rawpy is. Of several pages or frames the first is read, of a HEIC its primary image; the warnings name what is left
    out (pages, gain maps, depth maps, videos). Colour under an alpha of 0 becomes that of the nearest visible pixel. An
    image whose channels are equal, but for a JPEG's rounding, becomes grey. docs/formats.md has a table.

    Args:
        development: of camera RAW; None for the camera's white balance at its own brightness.

    Raises:
        FileNotFoundError: no such file.
        ImageError: not an image, cut short, a layout that is not read, or more than `max_pixels` pixels.
        ModuleNotFoundError: the format needs a package that is missing; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image at {path}.")
    head = _head(path, 2**16)
    if is_dng(head) or (path.suffix.lower() in RAW_SUFFIXES and not head.startswith((b"\xff\xd8\xff", b"\x89PNG"))):
        return _read_raw(path, max_pixels, development or Development())
    if heif := is_heif(head):  # phones and messengers also name such files .jpg
        import_optional("pillow_heif", "photos", why=f"Reading {path.name}").register_heif_opener()
    try:
        return _read_sound(path, max_pixels, heif)
    except (ImageError, ModuleNotFoundError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} cannot be read as an image: {kind_of(_head(path, 512))}.") from error
    except Exception as error:  # Pillow's and tifffile's readers raise almost anything on corrupt files
        raise ImageError(f"{path} cannot be read as an image ({type(error).__name__}: {error}).") from error


def photo_of(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """The same of a Pillow image in memory; 16-bit colour has been lost by Pillow already.

    Raises:
        ImageError: more than `max_pixels` pixels, or values whose range is not known.
    """
    path = Path(getattr(image, "filename", "") or "the image")
    check_size(path, image.size, max_pixels)
    return _from_pillow(path, image, b"")


def write_photo(
    path: str | Path, image: np.ndarray, *, like: Photo | None = None, quality: int = JPEG_QUALITY
) -> list[str]:
    """Write an image in the format of the path's suffix; whole or not at all.

    Args:
        image: float (H, W, 3) in [0, 1], sRGB.
        like: whose transparency, depth, greyness, profile and metadata the file gets, as far as the format can hold
            them; its `alpha` must have the image's size. Where a format holds no transparency, the image is laid on
            white.
        quality: of JPEG and WebP, 1 to 100.

    Returns:
        Sentences about what the format does not hold; they are logged as well.

    Raises:
        ImageError: an unknown suffix, values that are not finite, a side that the format does not hold, an image of
            another size than `like.alpha`.
        ModuleNotFoundError: TIFF without tifffile, 16-bit PNG without OpenCV, 16 bits with a profile without
            imagecodecs.
    """
    path = Path(path)
    like = like or Photo(image)
    kind = {suffix: name for name, suffix in FORMATS.items()} | {".jpeg": "jpeg", ".tiff": "tiff"}
    if path.suffix.lower() not in kind:
        raise ImageError(f"{path} cannot be written: its suffix must be one of {', '.join(kind)}.")
    if not np.isfinite(image).all():
        raise ImageError("An image holds NaN or infinite values and cannot be written.")
    fmt, alpha = kind[path.suffix.lower()], like.alpha
    if max(image.shape[:2]) > _LONGEST.get(fmt, 2**31):
        raise ImageError(f"{path} cannot be written: a side of {max(image.shape[:2])} pixels is too long for {fmt}.")
    if alpha is not None and alpha.shape != image.shape[:2]:
        raise ImageError(f"The transparency has {alpha.shape} pixels, the image {image.shape[:2]}.")
    lost = []
    if alpha is not None and fmt == "jpeg":
        image, alpha = Photo(image, alpha).on_white(), None
        lost.append("transparency")
    if like.grey or like.neutral:
        image = _grey(image)
    if like.grey and like.profile and fmt == "webp":  # whose channels are three
        like = replace(like, profile=None)
        lost.append("a grey colour profile")
    bits = 16 if like.bits == 16 and fmt in _DEEP else 8
    lost += ["16 bits a channel"] if bits < like.bits else []
    if like.profile and bits == 16:
        image = deep.convert(image[..., : 1 if like.grey else 3], srgb().tobytes(), like.profile)
    levels = quantize(image, bits)
    if like.profile and bits == 8:
        levels = convert(levels, srgb(), profile_of(like.profile), "L" if like.grey else "RGB")
    levels = levels.reshape(*levels.shape[:2], -1)[..., : 1 if like.grey else 3]
    if alpha is not None:
        levels = np.dstack([levels, quantize(alpha, bits)])
    exif = for_size(like.metadata.exif, levels.shape[1], levels.shape[0])
    with atomic_write(path) as partial:
        lost += _encode(partial, fmt, levels, like.metadata._replace(exif=exif), like.profile, quality)
    notes = [f"Left out, because a {fmt.upper()} does not hold it: {', '.join(lost)}."] if lost else []
    for note in notes:
        LOG.warning("%s: %s", path.name, note)
    return notes


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat((image @ LUMA)[..., None], 3, axis=2)


def _encode(path: Path, fmt: str, levels: np.ndarray, kept: Metadata, icc: bytes | None, quality: int) -> list[str]:
    """Write uint8 or uint16 levels (H, W, 1 to 4); the names of the metadata that the format does not hold."""
    if fmt == "tiff":
        path.write_bytes(deep.encode_tiff(levels, kept, icc))
        return [key for key, _ in kept.texts]
    options, lost = for_pillow(kept, fmt)
    options |= {"icc_profile": icc, "quality": quality, "subsampling": "4:4:4", "compress_level": 3}
    if fmt == "png" and levels.dtype == np.uint16:
        content = into_png(deep.encode_png(levels, icc is not None), Metadata(), icc)
    else:  # each of Pillow's writers takes the options that it knows
        buffer = io.BytesIO()
        image = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
        image.save(buffer, format=fmt.upper(), **options)
        content = buffer.getvalue()
    path.write_bytes(into_png(content, kept) if fmt == "png" else content)
    return lost


# Reading


_OPENING = Lock()


def _opened(file: IO[bytes], heif: bool) -> Image.Image:
    # Pillow's own limit is one number for the whole process, and below what phones take today. Ours is checked before
    # anything is unpacked.
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=["HEIF"] if heif else OPENED)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _head(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _to_full_page(image: Any) -> None:
    # Scanners and editors put a reduced copy in front of the page that it shows.
    number = 0
    while int(image.tag_v2.get(ExifTags.Base.NewSubfileType, 0)) & deep.REDUCED:
        number = (number + 1) % image.n_frames
        image.seek(number)
        if number == 0:  # all are
            break


def _read_sound(path: Path, max_pixels: int, heif: bool) -> Photo:
    try:
        return _read_file(path, max_pixels, heif)
    except (ImageError, ModuleNotFoundError):
        raise
    except Exception:  # Pillow refuses a photo for one damaged text
        sound, damaged = without_damaged_parts(path.read_bytes())
        if not damaged:
            raise
        photo = _read_file(path, max_pixels, heif, sound)
        note = f"Damaged parts beside the image are left out: {', '.join(damaged)}."
        return replace(photo, warnings=(*photo.warnings, note))


def _read_file(path: Path, max_pixels: int, heif: bool, content: bytes = b"") -> Photo:
    further: list[str] = []
    try:
        # Opened here: of a path Pillow maps uncompressed TIFFs into memory, and then does not turn them upright.
        with io.BytesIO(content) if content else open(path, "rb") as file, _opened(file, heif) as image:
            if image.format == "TIFF":
                _to_full_page(image)
                deep.check_layout(path, image.tag_v2)  # type: ignore[attr-defined]
            if not (image.format == "TIFF" and deep.beyond_pillow(image, further)):
                check_size(path, image.size, max_pixels)
                return _from_pillow(path, image, content or path.read_bytes())
    except UnidentifiedImageError:
        if _head(path, 4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise
    samples, icc, orientation, notes = deep.read_tiff(path, max_pixels)
    notes += further
    return from_samples(samples, icc, orientation, tiff_metadata(path.read_bytes(), notes), notes)


def _from_pillow(path: Path, image: Image.Image, content: bytes) -> Photo:
    notes = left_out(image, content)
    fmt = image.format if content else None  # of an image in memory there is none
    image.load()
    if content and lacks_data(image, content):
        raise ImageError(f"{path} is cut short: its image data end before the image does.")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    metadata, lost = metadata_of(image, content if fmt == "TIFF" else None)
    icc = declared_profile(image, content, notes)
    samples = None
    if fmt == "HEIF":
        orientation = turn_of_heif(image, content, notes)
        samples = deep.read_heif(content) if image.info["bit_depth"] > 8 else None
    depth = content[24] if fmt == "PNG" else 8  # of IHDR
    if image.mode == "L" and "transparency" in image.info:  # Pillow spreads 2 and 4 bits over 8, but not this level
        image.info["transparency"] *= {2: 85, 4: 17}.get(depth, 1)
    if depth == 16 and not image.mode.startswith("I"):
        try:
            samples = deep.read_png(path)
        except ModuleNotFoundError:
            notes.append("16-bit colour needs OpenCV (pip install 'face2scene[photos]'): read at 8 bits.")
    if samples is None:
        image, icc = _from_cmyk(image, icc, notes)
        samples = _samples(path, image, notes)
    return from_samples(samples, icc, orientation, metadata, [*notes, *lost])


def _from_cmyk(image: Image.Image, icc: bytes | None, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    if image.mode != "CMYK":
        return image, icc
    if image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, whose inks are inverted
    if icc:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # then as without a profile
            return ImageCms.profileToProfile(image, profile_of(icc), srgb(), outputMode="RGB") or image, None
    notes.append("CMYK without a usable colour profile: converted by the plain formula, so colours may differ.")
    return image, None


def _samples(path: Path, image: Image.Image, notes: list[str]) -> Samples:
    grey, of_bmp = image.mode in ("L", "1", "LA", "La", "F") or image.mode.startswith("I"), image.format == "BMP"
    key = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        alpha = None if key is None else (values != key).astype(np.float32)
        if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:  # Pillow's former mode for 16 bits
            values = values.astype(np.uint16)
        values = deep.unit_range(path, values, 16, 65535, notes)
        return Samples(values[..., None], alpha, 8 if image.mode == "F" else 16)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or key is not None:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = np.asarray(image.getchannel("A"), dtype=np.float32) / 255
        if of_bmp and not alpha.any():  # programs that know no transparency leave 0 there, and viewers show the image
            alpha = None
    colour = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return Samples(colour[..., :1] if grey else colour, alpha)


def from_samples(samples: Samples, icc: bytes | None, orientation: int, metadata: Metadata, notes: list[str]) -> Photo:
    """The photo of decoded samples: converted by a profile, turned, and without colour under an alpha of 0."""
    colour, alpha, bits = samples
    grey = colour.shape[2] == 1
    profile = other_profile(icc, grey, notes)
    if profile:
        colour, bits = to_srgb(colour, profile, bits, notes)
        colour = colour[..., 1:2] if grey else colour
        profile = None if grey and colour_space(profile) != "GRAY" else profile  # a file of one channel cannot keep it
    colour = _upright(np.repeat(colour, 3, axis=2) if grey else colour, orientation)
    alpha = None if alpha is None or alpha.min() == 1 else np.ascontiguousarray(_upright(alpha, orientation))
    if alpha is not None:
        colour = _visible(colour, alpha)
    neutral = not grey and all(np.ptp(part, axis=2).max() <= NEUTRAL + 1e-6 for part in (colour[::16, ::16], colour))
    colour = _grey(colour) if neutral else colour
    return Photo(np.ascontiguousarray(colour), alpha, bits, grey, neutral, profile, metadata, tuple(notes))


def _visible(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    # What programs leave under an alpha of 0 differs and must not show at the edges.
    clear = alpha == 0
    if clear.all():
        return np.ones_like(colour)
    if not clear.any():
        return colour
    rows, columns = ndimage.distance_transform_edt(clear, return_distances=False, return_indices=True)
    return colour[rows, columns]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _read_raw(path: Path, max_pixels: int, development: Development) -> Photo:
    try:
        image = develop(path, development, max_pixels=max_pixels).image
    except RawError as error:
        raise ImageError(str(error)) from error
    notes = ["Developed with automatic brightness."] if development.auto_bright else []
    in_tiff = _head(path, 2) in (b"II", b"MM")  # laid out like one; metadata of the others are not read
    metadata = tiff_metadata(path.read_bytes(), notes) if in_tiff else Metadata()
    return Photo(image, bits=16, metadata=metadata, warnings=tuple(notes))
