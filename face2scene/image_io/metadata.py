"""What a photo's file says about the photo: camera, time, place, author; kept through a restoration.

Of EXIF everything is kept that is still true of the restored image. Left out: the orientation, which was applied;
the thumbnail, which shows the degraded image; and how the old file was laid out.
"""

import re
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

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
    """Of an open image, before it is turned upright."""
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
    """The same block, with the size it states, if it states one, set to the image's."""
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
    except Exception:  # no EXIF, no date, no image: no shot
        return None
    return Shot(time, (str(exif.get(_Base.Make, "")).strip(), str(exif.get(_Base.Model, "")).strip()))


# Into the files that Pillow does not write


def into_tiff(tiff: bytes, exif: bytes | None, xmp: bytes | None) -> bytes:
    """Append EXIF's directories, its texts and XMP to a little-endian TIFF, and a first directory that knows of them.

    Pillow's writer of compressed TIFFs cannot do the directories, `tifffile` will not.
    """
    if exif is None and xmp is None:
        return tiff
    loaded = Image.Exif()
    if exif is not None:
        loaded.load(exif)
    result = bytearray(tiff)
    (start,) = struct.unpack_from("<I", result, 4)
    (count,) = struct.unpack_from("<H", result, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    entries = {struct.unpack_from("<H", result, place)[0]: bytes(result[place : place + 12]) for place in places}
    following = bytes(result[start + 2 + 12 * count :][:4])

    def add(tag: int, kind: int, length: int, data: bytes, inline: bool = False) -> None:
        if inline:
            entries[tag] = struct.pack("<HHI", tag, kind, length) + data.ljust(4, b"\0")
            return
        entries[tag] = struct.pack("<HHII", tag, kind, length, len(result))
        result.extend(data + b"\0" * (len(data) % 2))

    result.extend(b"\0" * (len(result) % 2))
    for tag in (_IFD.Exif, _IFD.GPSInfo):
        directory = ImageFileDirectory_v2(b"II\x2a\x00\x08\x00\x00\x00", group=tag)
        for key, value in loaded.get_ifd(tag).items():
            directory[key] = value
        if len(directory):
            add(int(tag), 4, 1, directory.tobytes(len(result)))  # a long: where the directory is
    for tag in _KEPT:
        if isinstance(text := loaded.get(tag), str):
            data = text.encode() + b"\0"
            add(int(tag), 2, len(data), data, inline=len(data) <= 4)
    if xmp is not None:
        add(int(_Base.XMLPacket), 1, len(xmp), xmp, inline=len(xmp) <= 4)
    struct.pack_into("<I", result, 4, len(result))
    rows = [entries[tag] for tag in sorted(entries)]
    return bytes(result + struct.pack("<H", len(rows)) + b"".join(rows) + following)


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
