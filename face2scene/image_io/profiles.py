"""ICC colour profiles: to sRGB and back. Pillow's littlecms converts 8 bits a channel only; imagecodecs' more."""

import contextlib
import io
import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from face2scene.image_io import deep
from face2scene.image_io.attachments import P3, stated_colours

_SRGB_CURVE = 13  # of H.273's transfer characteristics
_STEPS = np.linspace(0, 255, 9).round().astype(np.uint8)
_PROBE = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), -1).reshape(27, 27, 3)


def quantize(image: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] to whole levels, rounded to nearest: uint8 or uint16."""
    top = 2**bits - 1
    return (image.clip(0, 1) * top).round().astype(np.uint8 if bits == 8 else np.uint16)


def srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def profile_of(icc: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


def adobe_rgb() -> bytes:
    """An ICC profile of Adobe RGB (1998): primaries adapted to D50, gamma 563 / 256."""
    primaries = (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
    return _profile(b"Adobe RGB (1998)\0", primaries, struct.pack(">IHxx", 1, 563))


def display_p3() -> bytes:
    """An ICC profile of Display P3 (SMPTE EG 432-1): primaries adapted to D50, the curve of sRGB."""
    primaries = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
    steps = np.linspace(0, 1, 1024)
    curve = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    levels = (curve * 65535).round().astype(">u2").tobytes()
    return _profile(b"Display P3\0", primaries, struct.pack(">I", len(steps)) + levels)


def _profile(name: bytes, primaries: tuple[tuple[float, ...], ...], curve: bytes) -> bytes:
    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none".ljust(16, b"\0"),
        b"wtpt": xyz(0.9505, 1.0, 1.0891),
    }
    tags |= {tag: xyz(*one) for tag, one in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0" + curve)
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4xI12s12x4s28x", start + len(body), 0x02100000, b"mntrRGB XYZ ", b"acsp")
    return (head + xyz(0.9642, 1.0, 0.8249)[8:]).ljust(128, b"\0") + table + body


_MARKERS = {"JPEG": b"ICC_PROFILE\0", "MPO": b"ICC_PROFILE\0", "PNG": b"iCCP"}  # in front of a profile
_EMBEDDED = b"DEBM"  # of a BMP's colour space (LOGCOLORSPACE, at 70): a profile is in the file


def declared_profile(image: Image.Image, content: bytes, notes: list[str]) -> bytes | None:
    """The ICC profile that a file's colours are to be converted from; None for sRGB.

    Args:
        image: loaded.
        content: the file's bytes; empty for an image in memory.
        notes: gets a sentence for a profile that is damaged.
    """
    icc = image.info.get("icc_profile")
    primaries, transfer = stated_colours(image, content)
    colour = image.mode in ("RGB", "RGBA")
    first = image.format == "PNG" and transfer == _SRGB_CURVE  # PNG's third edition: cICP decides, not iCCP
    if colour and primaries == P3 and (first or icc is None):
        return display_p3()
    if first and primaries == 1:
        return None
    if image.format == "BMP" and content[70:74] == _EMBEDDED:
        start, size = struct.unpack_from("<II", content, 126)
        icc = content[14 + start : 14 + start + size]
    marker = _MARKERS.get(image.format or "")
    if icc is None and marker and content.find(marker, 0, 2**16) > 0:
        notes.append("The colour profile is damaged: the colours were read as sRGB.")
    return declared_by_exif(image.getexif(), notes) if icc is None and colour else icc


def declared_by_exif(exif: Image.Exif, notes: list[str]) -> bytes | None:
    """The profile of a colour image without one: Adobe RGB where the camera's file says so (DCF 2.0), or None."""
    with contextlib.suppress(Exception):  # Pillow's reader raises almost anything on corrupt EXIF
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = str(exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex, "")).strip("\0 ")
        if index == "R03" or space == 2:  # DCF's option file; 2 is what some cameras write, outside the standard
            return adobe_rgb()
        if space == 65535 and not index:
            notes.append("EXIF says that the colours are not sRGB, but not which: they were read as sRGB.")
    return None


def colour_space(icc: bytes) -> str:
    return profile_of(icc).profile.xcolor_space.strip()


def to_srgb(colour: np.ndarray, profile: bytes, bits: int, notes: list[str]) -> tuple[np.ndarray, int]:
    if bits == 16:
        try:
            return deep.convert(colour, profile, srgb().tobytes()), 16
        except ModuleNotFoundError as error:
            notes.append(f"16 bits with a colour profile were converted at 8 bits: {error}.")
    return convert(quantize(colour, 8), profile_of(profile), srgb(), "RGB").astype(np.float32) / 255, 8


def other_profile(icc: bytes | None, grey: bool, notes: list[str]) -> bytes | None:
    if not icc:
        return None
    try:
        if colour_space(icc) == "GRAY" and not grey:
            raise ImageCms.PyCMSError("a grey profile of a colour image")
        probe = _PROBE[..., :1] if colour_space(icc) == "GRAY" else _PROBE
        converted = convert(probe, profile_of(icc), srgb(), "RGB")
    except (ImageCms.PyCMSError, OSError) as error:  # treated like a missing one, as browsers do
        notes.append(f"The colour profile cannot be used ({error}): the colours were read as sRGB.")
        return None
    # What a profile does decides, not its name: many that mean sRGB have names of their own.
    return None if np.abs(converted.astype(int) - probe).max() <= 2 else icc


def convert(levels: np.ndarray, source: Any, target: Any, mode: str) -> np.ndarray:
    """Convert uint8 (H, W, 1 or 3) to (H, W, 3), or (H, W) for the mode `L`."""
    if levels.shape[2] == 1 and source.profile.xcolor_space.strip() != "GRAY":
        levels = np.repeat(levels, 3, axis=2)
    image = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
    return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode=mode))
