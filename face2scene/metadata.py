"""What a photo's file says about the photo: camera, time, place, author; kept through a restoration.

Of EXIF everything is kept that is still true of the restored picture. Left out: the orientation, which was applied;
the thumbnail, which shows the damaged picture; and how the old file was laid out.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_Base, _IFD = ExifTags.Base, ExifTags.IFD
# Of the first directory; a TIFF keeps its strips and compression there, too.
_KEPT = (
    *(_Base.ImageDescription, _Base.Make, _Base.Model, _Base.XResolution, _Base.YResolution, _Base.ResolutionUnit),
    *(_Base.Software, _Base.DateTime, _Base.Artist, _Base.HostComputer, _Base.Rating, _Base.RatingPercent),
    *(_Base.Copyright, _Base.XPTitle, _Base.XPComment, _Base.XPAuthor, _Base.XPKeywords, _Base.XPSubject),
)
_SIZES = (_Base.ExifImageWidth, _Base.ExifImageHeight)
_MAKER_NOTE_OF_RAW = 500_000  # bytes; raw files keep whole previews there
_XMP_ORIENTATION = re.compile(rb'\s*tiff:Orientation="[0-9]"|<tiff:Orientation>[0-9]</tiff:Orientation>')
XMP_OF_PNG = "XML:com.adobe.xmp"


class Metadata(NamedTuple):
    """EXIF as a block that every format takes, and XMP; None where there is none."""

    exif: bytes | None = None
    xmp: bytes | None = None


def metadata_of(image: Image.Image) -> Metadata:
    """Of an open picture, before it is turned upright."""
    xmp = image.info.get("xmp") or image.info.get(XMP_OF_PNG)
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if isinstance(xmp, bytes):
        xmp = _XMP_ORIENTATION.sub(b"", xmp)
    return Metadata(_kept(image.getexif()), xmp or None)


def _kept(exif: Image.Exif) -> bytes | None:
    kept = Image.Exif()
    for tag in _KEPT:
        if tag in exif:
            kept[tag] = exif[tag]
    for ifd in (_IFD.Exif, _IFD.GPSInfo):
        inner = dict(exif.get_ifd(ifd))
        inner.pop(_IFD.Interop, None)  # an offset into the old file
        note = inner.get(_Base.MakerNote)
        if isinstance(note, bytes) and len(note) > _MAKER_NOTE_OF_RAW:
            del inner[_Base.MakerNote]
        if inner:
            kept[ifd] = inner
    return _packed(kept)


def for_size(exif: bytes | None, width: int, height: int) -> bytes | None:
    """The same block, with the size it states, if it states one, set to the picture's."""
    if exif is None:
        return None
    loaded = Image.Exif()
    loaded.load(exif)
    inner = dict(loaded.get_ifd(_IFD.Exif))
    if not any(tag in inner for tag in _SIZES):
        return exif
    loaded[_IFD.Exif] = inner | dict(zip(_SIZES, (width, height), strict=True))
    return _packed(loaded)


def _packed(exif: Image.Exif) -> bytes | None:
    if not len(exif):
        return None
    try:
        return exif.tobytes()
    except (struct.error, ValueError, TypeError, OverflowError, KeyError):
        return None  # values that do not fit their own types: cameras do write such


class Shot(NamedTuple):
    """When and by what a photo was taken."""

    time: float  # seconds, on the camera's own clock
    camera: tuple[str, str]  # maker and model


def shot_of(path: str | Path) -> Shot | None:
    """From the EXIF of a file; None where it says nothing, or cannot be read."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            inner = exif.get_ifd(_IFD.Exif)
        taken = datetime.strptime(str(inner[_Base.DateTimeOriginal]), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
        fraction = str(inner.get(_Base.SubsecTimeOriginal, "")).strip()
        time = taken.timestamp() + (float(f"0.{fraction}") if fraction.isdigit() else 0.0)
    except Exception:  # no EXIF, no date, no picture: no shot
        return None
    return Shot(time, (str(exif.get(_Base.Make, "")).strip(), str(exif.get(_Base.Model, "")).strip()))


# Into the files that Pillow does not write


def into_tiff(tiff: bytes, exif: bytes | None) -> bytes:
    """Append EXIF's directories to a little-endian TIFF that was written with `tiff_tags` of the same block."""
    if exif is None:
        return tiff
    loaded = Image.Exif()
    loaded.load(exif)
    result = bytearray(tiff)
    (start,) = struct.unpack_from("<I", result, 4)
    (count,) = struct.unpack_from("<H", result, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", result, entry)
        if tag in (_IFD.Exif, _IFD.GPSInfo):
            result += b"\0" * (len(result) % 2)
            struct.pack_into("<I", result, entry + 8, len(result))
            directory = ImageFileDirectory_v2(b"II\x2a\x00\x08\x00\x00\x00", group=tag)
            for key, value in loaded.get_ifd(tag).items():
                directory[key] = value
            result += directory.tobytes(len(result))
    return bytes(result)


def tiff_tags(exif: bytes | None, xmp: bytes | None) -> list[tuple[int, str, int, Any, bool]]:
    """EXIF and XMP as `tifffile`'s extratags: the texts, and places for the directories that `into_tiff` appends."""
    tags: list[tuple[int, str, int, Any, bool]] = []
    if xmp is not None:
        tags.append((_Base.XMLPacket, "B", len(xmp), xmp, True))
    loaded: Image.Exif | Mapping[int, Any] = Image.Exif()
    if exif is not None:
        loaded.load(exif)
    for tag in loaded:
        if tag in (_IFD.Exif, _IFD.GPSInfo):
            tags.append((tag, "I", 1, 0, True))
        elif tag in _KEPT and isinstance(loaded[tag], str):
            tags.append((int(tag), "s", 0, loaded[tag], True))
    return tags


def into_png(png: bytes, exif: bytes | None, xmp: bytes | None) -> bytes:
    """Add the two chunks behind the header."""
    chunks = b""
    if exif is not None:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if xmp is not None:
        chunks += _chunk(b"iTXt", XMP_OF_PNG.encode() + b"\0\0\0\0\0" + xmp)
    after_header = 8 + 25  # signature, IHDR
    return png[:after_header] + chunks + png[after_header:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
