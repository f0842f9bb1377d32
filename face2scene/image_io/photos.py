"""Photo files as they really are: what a file holds besides its pixels is kept beside them and put back on writing.

Inside, every image is float32 RGB in [0, 1], upright, in sRGB. What a file may have and a network cannot use is a
field of `Photo`: transparency, 16 bits, a colour profile, being grey, EXIF.
"""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, features
from PIL.PngImagePlugin import PngInfo

from face2scene.common.files import atomic_write
from face2scene.common.optional import import_optional
from face2scene.image_io.metadata import XMP_OF_PNG, for_size, into_png, into_tiff, metadata_of
from face2scene.image_io.raw import RawError, develop

RAW_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
HEIF_SUFFIXES = (".heic", ".heif")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *HEIF_SUFFIXES,
    *RAW_SUFFIXES,
)
MAX_PIXELS = 200_000_000  # our setting: a larger file is more often a bomb than a photo
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
JPEG_QUALITY = 95  # ours; of WebP too
_JPEG_MARKER = 65_000  # bytes; what one of its markers holds, about
_DEEP = ("png", "tiff")  # formats that hold 16 bits


class ImageError(ValueError):
    """A file that cannot be used as an image; the message names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An image and what its file knew about it."""

    image: np.ndarray  # float32 (H, W, 3) in [0, 1], sRGB, upright; transparency not applied
    alpha: np.ndarray | None = None  # float32 (H, W), 1 is opaque
    bits: int = 8  # per channel: 8 or 16
    grey: bool = False
    profile: bytes | None = None  # ICC, where it is not sRGB; `image` has been converted from it
    exif: bytes | None = None  # what of it is still true, see `metadata`
    xmp: bytes | None = None
    warnings: tuple[str, ...] = ()

    def on_white(self) -> np.ndarray:
        """The image with its transparent parts laid on white."""
        if self.alpha is None:
            return self.image
        return self.image * self.alpha[..., None] + (1 - self.alpha[..., None])


def read_photo(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read an image upright and in sRGB, and keep the rest.

    PNG, JPEG, WebP, BMP, GIF, TIFF; AVIF where Pillow has it; HEIC where pillow-heif is installed; camera RAW where
    rawpy is, developed as the camera would (its white balance, 16 bits).

    Raises:
        FileNotFoundError: no such file.
        ImageError: not an image, cut short, or more than `max_pixels` pixels.
        ModuleNotFoundError: the format needs a package that is missing; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image at {path}.")
    if path.suffix.lower() in RAW_SUFFIXES:
        return _read_raw(path, max_pixels)
    if _is_heif(path):  # phones and messengers also name such files .jpg
        import_optional("pillow_heif", "photos", why=f"Reading {path.name}").register_heif_opener()
    try:
        with _opened(path) as image:
            _check_size(path, image.size, max_pixels)
            return _from_pillow(path, image)
    except (ImageError, ModuleNotFoundError):
        raise
    except Exception as error:  # Pillow's readers raise almost anything on corrupt files
        raise ImageError(f"{path} cannot be read as an image ({type(error).__name__}: {error}).") from error


def photo_of(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """The same of a Pillow image in memory: upright, in sRGB; 16-bit colour has been lost by Pillow already.

    Raises:
        ImageError: more than `max_pixels` pixels.
    """
    _check_size(Path(getattr(image, "filename", "") or "the image"), image.size, max_pixels)
    return _from_pillow(None, image)


def write_photo(path: str | Path, image: np.ndarray, *, like: Photo | None = None, quality: int = JPEG_QUALITY) -> None:
    """Write an image in the format of the path's suffix; whole or not at all.

    Args:
        image: float (H, W, 3) in [0, 1], sRGB.
        like: whose transparency, depth, greyness, profile and EXIF the file gets, as far as the format can hold them;
            its `alpha` must have the image's size. Where a format holds no transparency, the image is laid on
            white.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ImageError: an unknown suffix, values that are not finite, an image of another size than `like.alpha`.
    """
    path = Path(path)
    like = like or Photo(image)
    kind = {suffix: name for name, suffix in FORMATS.items()} | {".jpeg": "jpeg", ".tiff": "tiff"}
    if path.suffix.lower() not in kind:
        raise ImageError(f"{path} cannot be written: its suffix must be one of {', '.join(kind)}.")
    if not np.isfinite(image).all():
        raise ImageError("An image holds NaN or infinite values and cannot be written.")
    if like.alpha is not None and like.alpha.shape != image.shape[:2]:
        raise ImageError(f"The transparency has {like.alpha.shape} pixels, the image {image.shape[:2]}.")
    fmt = kind[path.suffix.lower()]
    alpha = like.alpha
    if alpha is not None and fmt == "jpeg":
        image, alpha = Photo(image, alpha).on_white(), None
    if like.grey:
        image = np.repeat((image @ _LUMA)[..., None], 3, axis=2)
    deep = like.bits == 16 and fmt in _DEEP
    with atomic_write(path) as partial:
        if deep:
            partial.write_bytes(_encode_16_bit(fmt, image, alpha, like))
            return
        pil_image = Image.fromarray(quantize(image, 8))
        if like.profile:
            pil_image = _convert(pil_image, _srgb(), ImageCms.ImageCmsProfile(io.BytesIO(like.profile)))
        if like.grey:
            pil_image = pil_image.convert("L")
        if alpha is not None:
            pil_image.putalpha(Image.fromarray(quantize(alpha, 8)))
        options: dict[str, Any] = {"png": {"compress_level": 3}, "tiff": {"compression": "tiff_adobe_deflate"}}.get(
            fmt, {"quality": quality}
        )
        if fmt == "jpeg":
            options["subsampling"] = "4:4:4"
        if like.profile and not like.grey:
            options["icc_profile"] = like.profile
        exif = for_size(like.exif, *pil_image.size)
        if fmt == "tiff":
            buffer = io.BytesIO()
            pil_image.save(buffer, format="TIFF", **options)
            partial.write_bytes(into_tiff(buffer.getvalue(), exif, like.xmp))
            return
        if exif and (fmt != "jpeg" or len(exif) < _JPEG_MARKER):
            options["exif"] = exif
        if like.xmp and fmt == "png":
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt(XMP_OF_PNG, like.xmp.decode(errors="replace"))
        elif like.xmp and (fmt != "jpeg" or len(like.xmp) < _JPEG_MARKER):
            options["xmp"] = like.xmp
        pil_image.save(partial, format=fmt.upper(), **options)


def quantize(image: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] to whole levels, rounded to nearest: uint8 or uint16."""
    top = 2**bits - 1
    return (image.clip(0, 1) * top).round().astype(np.uint8 if bits == 8 else np.uint16)


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's L


# Reading


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million (max_pixels)."
        )


_OPENING = Lock()
_OPENED = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if features.check("avif") else ()))


def _opened(path: Path) -> Image.Image:
    # Pillow's own limit is one number for the whole process, and below what phones take today. Ours is checked before
    # anything is unpacked.
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            # Named one by one: for a PostScript file that calls itself .jpg Pillow would start another program.
            return Image.open(path, formats=["HEIF"] if _is_heif(path) else _OPENED)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_heif(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _from_pillow(path: Path | None, image: Image.Image) -> Photo:
    deep = path is not None and image.tile and "16" in str(image.tile[0].args) and image.mode in ("RGB", "RGBA")
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    exif, xmp = metadata_of(image)
    profile = _other_profile(image)
    notes: list[str] = []
    if deep and profile:
        notes.append("16 bits with a colour profile: converted to sRGB at 8 bits, the depth is lost.")
        deep = False
    if deep and importlib.util.find_spec("cv2") is None:
        notes.append("16-bit colour needs OpenCV (pip install 'face2scene[photos]'): read at 8 bits.")
        deep = False

    alpha = None
    if deep:
        pixels = _decode_16_bit(path)
        pixels = _upright(pixels, orientation)
        colour = pixels[..., :3]
        alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
        bits, grey = 16, False
    else:
        upright = ImageOps.exif_transpose(image)
        bits = 16 if upright.mode.startswith("I") else 8
        if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = upright.convert("RGBA")
            alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
            if alpha.min() == 1:
                alpha = None
            grey = upright.mode in ("LA", "La", "L", "1")
            upright = rgba.convert("RGB")
        else:
            grey = upright.mode in ("L", "1", "F") or bits == 16
        if upright.mode == "CMYK" and image.info.get("icc_profile"):
            upright = _convert(upright, ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])), _srgb())
        elif profile and not grey:
            upright = _convert(upright.convert("RGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb())
        colour = _float_rgb(upright)
    return Photo(
        np.ascontiguousarray(colour),
        alpha,
        bits,
        grey,
        None if grey else profile,
        exif,
        xmp,
        tuple(notes),
    )


def _float_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)
        top = 1.0 if image.mode == "F" and grey.max() <= 1 else 65535.0
        return np.repeat((grey / top).clip(0, 1)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _read_raw(path: Path, max_pixels: int) -> Photo:
    try:
        image = develop(path, max_pixels=max_pixels).image
    except RawError as error:
        raise ImageError(str(error)) from error
    try:
        with Image.open(path) as pages:  # most raw files are TIFFs as far as their first pages go
            exif, xmp = metadata_of(pages)
    except Exception:  # the others keep what they know to themselves
        exif = xmp = None
    return Photo(image, bits=16, exif=exif, xmp=xmp)


# Colour profiles. Pillow's littlecms converts 8 bits a channel only.


_STEPS = np.linspace(0, 255, 9).round().astype(np.uint8)
_PROBE = Image.fromarray(np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), -1).reshape(27, 27, 3))


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _other_profile(image: Image.Image) -> bytes | None:
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        converted = ImageCms.profileToProfile(_PROBE, profile, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None  # a broken profile, or one of another colour model, is treated like a missing one, as browsers do
    # What a profile does decides, not its name: many that mean sRGB have names of their own.
    return None if np.abs(np.asarray(converted, int) - np.asarray(_PROBE, int)).max() <= 2 else data


def _convert(image: Image.Image, source: Any, target: Any) -> Image.Image:
    try:
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image


# 16 bits a channel in colour, which Pillow neither reads nor writes


def _decode_16_bit(path: Path) -> np.ndarray:
    cv2 = import_optional("cv2", "photos", why=f"Reading 16 bits of {path.name}")
    levels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.ndim != 3:
        raise ImageError(f"{path} cannot be read as a 16-bit image.")
    order = [2, 1, 0, 3][: levels.shape[2]]
    return levels[..., order].astype(np.float32) / 65535


def _encode_16_bit(fmt: str, image: np.ndarray, alpha: np.ndarray | None, like: Photo) -> bytes:
    levels = quantize(image[..., :1] if like.grey else image if alpha is None else np.dstack([image, alpha]), 16)
    exif = for_size(like.exif, levels.shape[1], levels.shape[0])
    if fmt == "tiff":
        buffer = io.BytesIO()
        import_optional("tifffile", "photos", why="Writing a 16-bit TIFF").imwrite(
            buffer,
            levels[..., 0] if like.grey else levels,
            photometric="minisblack" if like.grey else "rgb",
            extrasamples=["unassalpha"] if levels.shape[2] == 4 else None,
            compression="zlib",
            metadata=None,
            byteorder="<",
            bigtiff=False,
        )
        return into_tiff(buffer.getvalue(), exif, like.xmp)
    cv2 = import_optional("cv2", "photos", why="Writing a 16-bit PNG")
    ok, encoded = cv2.imencode(".png", levels if like.grey else levels[..., [2, 1, 0, 3][: levels.shape[2]]])
    if not ok:
        raise ImageError("OpenCV could not write a 16-bit PNG.")
    return into_png(encoded.tobytes(), exif, like.xmp)
