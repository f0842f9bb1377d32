"""Metadata of photo files, kept through a restoration as bytes: EXIF, XMP, IPTC, texts and resolution.

Entries are copied as they are stored. Left out are the orientation, which has been applied; the thumbnail, which shows
the degraded image; and how the old file was laid out (its gain map and video, too). An entry that cannot be read is
left out alone, with a warning.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, features

# What Pillow may open, named one by one: for a PostScript file that calls itself .jpg it would start another program.
OPENED = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if features.check("avif") else ()))
_Base = ExifTags.Base
_EXIF, _GPS, _INTEROP = int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo), int(ExifTags.IFD.Interop)
_XMP, _IPTC = int(_Base.XMLPacket), int(_Base.IPTCNAA)
_RESOLUTION = (int(_Base.XResolution), int(_Base.YResolution), int(_Base.ResolutionUnit))
# Of a TIFF's first directory, which holds its strips and compression, too.
_KEPT = {
    *(_Base.ImageDescription, _Base.Make, _Base.Model, _Base.Software, _Base.DateTime, _Base.Artist, _Base.Copyright),
    *(_Base.HostComputer, _Base.Rating, _Base.RatingPercent, _Base.XPTitle, _Base.XPComment, _Base.XPAuthor),
    *(_Base.XPKeywords, _Base.XPSubject, *_RESOLUTION),
}
_SIZES = {int(_Base.ExifImageWidth): 0, int(_Base.ExifImageHeight): 1}
_MAKER_NOTE_OF_RAW = 500_000  # bytes; raw files keep whole previews there
# What XMP says of the old file's layout: its orientation, and the gain map or video behind the image.
_XMP_LAYOUT = re.compile(
    rb'\s*(tiff:Orientation|xmpNote:HasExtendedXMP|hdrgm:\w+|GCamera:(MotionPhoto|MicroVideo)\w*)="[^"]*"'
    rb"|<(tiff:Orientation|hdrgm:\w+|GCamera:(MotionPhoto|MicroVideo)\w*|Container:Directory)\b[^>]*>.*?</\3>",
    re.DOTALL,
)
_XMP_OF_PNG = "XML:com.adobe.xmp"
_IPTC_OF_PNG = "Raw profile type iptc"  # as ImageMagick and Exiv2 keep it: hexadecimal, in Photoshop's block or without
_OF_PHOTOSHOP = b"8BIM\x04\x04\0\0"
_JPEG_MARKER = 65_000  # bytes; what one of its segments holds, about


class Metadata(NamedTuple):
    """Metadata of one file; None or empty where there is none."""

    exif: bytes | None = None  # a TIFF structure: byte order, directories, values
    xmp: bytes | None = None
    iptc: bytes | None = None  # IIM records
    texts: tuple[tuple[str, str], ...] = ()  # of PNG, and the comment of JPEG
    dpi: tuple[float, float] | None = None


def metadata_of(image: Image.Image, tiff: bytes | None = None) -> tuple[Metadata, list[str]]:
    """Metadata of an open image, and a sentence for each entry that was left out.

    Args:
        tiff: the file, where it is a TIFF.
    """
    notes: list[str] = []
    info = image.info
    block = tiff or bytes(info.get("exif") or b"").removeprefix(b"Exif\0\0")
    if not block:  # written as text in older PNG, or a TIFF in memory
        with contextlib.suppress(Exception):  # Pillow raises almost anything for values that do not fit their types
            block = image.getexif().tobytes().removeprefix(b"Exif\0\0")
    found = tiff_metadata(block, notes) if block else Metadata()
    photoshop = info.get("photoshop")
    iptc = photoshop.get(0x0404) if isinstance(photoshop, dict) else None
    xmp = info.get("xmp") or info.get(_XMP_OF_PNG)
    texts = {key: value for key, value in getattr(image, "text", {}).items() if not key.startswith(("XML:", "Raw "))}
    iptc = iptc or _iptc_of_png(getattr(image, "text", {}).get(_IPTC_OF_PNG, ""))
    if comment := info.get("comment"):
        texts["Comment"] = comment.decode("utf-8", "surrogateescape") if isinstance(comment, bytes) else str(comment)
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    xmp = _XMP_LAYOUT.sub(b"", xmp) if isinstance(xmp, bytes) else found.xmp
    absolute = info.get("jfif_unit", image.format not in ("JPEG", "MPO"))  # else Pillow's is EXIF's, of x, in any unit
    dpi = (info.get("dpi") if absolute else None) or found.dpi
    dpi = (float(dpi[0]), float(dpi[1])) if dpi and 1 < min(dpi) <= max(dpi) < 1e6 else None
    pairs = tuple((key, str(value)) for key, value in texts.items())
    return Metadata(found.exif, xmp or None, iptc or found.iptc, pairs, dpi), notes


def _iptc_of_png(text: str) -> bytes | None:
    with contextlib.suppress(ValueError):
        block = bytes.fromhex("".join(text.split()[2:]))  # behind the name and the length
        start = block.find(_OF_PHOTOSHOP) + len(_OF_PHOTOSHOP)
        if start >= len(_OF_PHOTOSHOP):
            return block[start + 4 : start + 4 + int.from_bytes(block[start : start + 4], "big")]
        return block if block.startswith(b"\x1c") else None
    return None


def _in_photoshop(iptc: bytes) -> bytes:
    return _OF_PHOTOSHOP + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


class Shot(NamedTuple):
    """When and by what a photo was taken."""

    time: float  # seconds, on the camera's own clock
    camera: tuple[str, str]  # maker and model


def shot_of(path: str | Path) -> Shot | None:
    """From the EXIF of a file; None where it is missing or cannot be read."""
    try:
        with Image.open(path, formats=[*OPENED, *({"HEIF"} & Image.OPEN.keys())]) as image:
            exif = image.getexif()
            inner = exif.get_ifd(_EXIF)
        taken = datetime.strptime(str(inner[_Base.DateTimeOriginal]), "%Y:%m:%d %H:%M:%S").replace(tzinfo=timezone.utc)
        fraction = str(inner.get(_Base.SubsecTimeOriginal, "")).strip()
        time = taken.timestamp() + (float(f"0.{fraction}") if fraction.isdigit() else 0.0)
    except Exception:  # no EXIF, no date, no image: no shot
        return None
    return Shot(time, (str(exif.get(_Base.Make, "")).strip(), str(exif.get(_Base.Model, "")).strip()))


# Directories of EXIF and TIFF: a count, entries of 12 bytes, the offset of the next directory

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}  # of a value


Block = bytes | bytearray


class _Entry(NamedTuple):
    tag: int
    at: int  # where its 12 bytes are
    start: int  # where its values are
    size: int  # of its values in bytes; 0 where they cannot be read


def byte_order(block: Block | None) -> str:
    """`<` or `>`, of a TIFF structure; `<` without one."""
    return ">" if block and block[:2] == b"MM" else "<"


def _number(block: Block, at: int, kind: str = "I") -> int:
    return int(struct.unpack_from(byte_order(block) + kind, block, at)[0])


def _entries(block: Block, start: int) -> list[_Entry]:
    found = []
    end = min(start + 2 + 12 * _number(block, start, "H"), len(block) - 11)
    for at in range(start + 2, end, 12):
        size = _BYTES.get(_number(block, at + 2, "H"), 0) * _number(block, at + 4)
        place = at + 8 if size <= 4 else _number(block, at + 8)
        fits = place + size <= len(block)
        found.append(_Entry(_number(block, at, "H"), at, place, size if fits else 0))
    return found


def tiff_metadata(tiff: bytes, notes: list[str]) -> Metadata:
    """EXIF as a block of its own, XMP and IPTC of an EXIF block, a TIFF, or a RAW file that is laid out like one."""
    if tiff[2:4] in (b"+\0", b"\0+"):
        notes.append("The metadata of a BigTIFF are left out.")
        return Metadata()
    order = byte_order(tiff)
    result = bytearray(tiff[:2] + struct.pack(order + "HI", 42, 0))
    limit = len(tiff) + _JPEG_MARKER  # entries may overlap; what is larger than the file is an attack

    def copy(entries: Iterable[_Entry], pointers: dict[int, int]) -> int:
        rows = {tag: struct.pack(order + "HHII", tag, 4, 1, place) for tag, place in pointers.items()}
        for entry in entries:
            if not entry.size or len(result) + entry.size > limit:
                notes.append(f"The EXIF entry 0x{entry.tag:04x} is left out: its value cannot be read.")
                continue
            value = tiff[entry.start : entry.start + entry.size]
            if entry.size > 4:
                if entry.tag == _Base.MakerNote and len(result) < entry.start < _JPEG_MARKER:
                    result.extend(bytes(entry.start - len(result)))  # its offsets often count from the block's start
                place = len(result)
                result.extend(value + b"\0" * (len(value) % 2))
                value = struct.pack(order + "I", place)
            rows[entry.tag] = tiff[entry.at : entry.at + 8] + value.ljust(4, b"\0")
        place = len(result)
        result.extend(_directory(order, rows, bytes(4)))
        return place

    blocks: dict[int, bytes] = {}
    pointers: dict[int, int] = {}
    try:
        first = _entries(tiff, _number(tiff, 4))
    except struct.error:
        notes.append("EXIF is left out: its directory cannot be read.")
        return Metadata()
    for entry in first:
        if entry.tag in (_EXIF, _GPS):
            try:
                inner = _entries(tiff, _number(tiff, entry.start))
            except struct.error:
                notes.append(f"The EXIF directory 0x{entry.tag:04x} is left out: it cannot be read.")
                continue
            kept = [one for one in inner if one.tag != _INTEROP and one.size <= _MAKER_NOTE_OF_RAW]
            pointers[entry.tag] = copy(kept, {})
        elif entry.tag in (_XMP, _IPTC):
            blocks[entry.tag] = tiff[entry.start : entry.start + entry.size]
    kept = [entry for entry in first if entry.tag in _KEPT]
    struct.pack_into(order + "I", result, 4, copy(kept, pointers))
    xmp = _XMP_LAYOUT.sub(b"", blocks.get(_XMP, b""))
    block = bytes(result) if kept or pointers else None
    return Metadata(block, xmp or None, blocks.get(_IPTC) or None, dpi=_dpi(tiff, first))


def _dpi(tiff: bytes, entries: list[_Entry]) -> tuple[float, float] | None:
    starts = {entry.tag: entry.start for entry in entries if entry.size >= (8, 2)[entry.tag == _RESOLUTION[2]]}
    if not set(_RESOLUTION) <= set(starts) or (unit := _number(tiff, starts[_RESOLUTION[2]], "H")) not in (2, 3):
        return None
    values = [_number(tiff, starts[tag]) / max(_number(tiff, starts[tag] + 4), 1) for tag in _RESOLUTION[:2]]
    return (values[0], values[1]) if unit == 2 else (values[0] * 2.54, values[1] * 2.54)


def _directory(order: str, rows: dict[int, bytes], following: bytes) -> bytes:
    return struct.pack(order + "H", len(rows)) + b"".join(rows[tag] for tag in sorted(rows)) + following


def is_dng(head: bytes) -> bool:
    """Whether a file that begins like this is a TIFF with the camera's samples (DNG), whatever its suffix."""
    with contextlib.suppress(struct.error):
        return head[:2] in (b"II", b"MM") and any(entry.tag == 50706 for entry in _entries(head, _number(head, 4)))
    return False


def for_size(exif: bytes | None, width: int, height: int) -> bytes | None:
    """The same block, with the size that it states, if it states one, set to the image's."""
    if exif is None:
        return None
    data, order = bytearray(exif), byte_order(exif)
    for pointer in _entries(data, _number(data, 4)):
        if pointer.tag == _EXIF:
            for entry in _entries(data, _number(data, pointer.start)):
                if entry.tag in _SIZES:
                    size = (width, height)[_SIZES[entry.tag]]
                    struct.pack_into(order + "HHII", data, entry.at, entry.tag, 4, 1, size)
    return bytes(data)


# Writing


def for_pillow(kept: Metadata, fmt: str) -> tuple[dict[str, Any], list[str]]:
    """Options of Pillow's writer of `jpeg` or `webp`, and the names of what the format, or `png`, does not hold."""
    if fmt == "png":  # which holds all, see `into_png`
        return {}, []
    jpeg = fmt == "jpeg"
    options: dict[str, Any] = {}
    lost = [key for key, _ in kept.texts if not (jpeg and key == "Comment")]
    for name, block in (("exif", kept.exif and b"Exif\0\0" + kept.exif), ("xmp", kept.xmp), ("iptc", kept.iptc)):
        if block and (len(block) > _JPEG_MARKER if jpeg else name == "iptc"):
            lost.append(f"{name} of {len(block)} bytes")
        elif block and name == "iptc":
            content = b"Photoshop 3.0\0" + _in_photoshop(block)
            options["extra"] = b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
        elif block:
            options[name] = block
    if jpeg and (comment := dict(kept.texts).get("Comment")):
        options["comment"] = comment.encode("utf-8", "surrogateescape")
    if jpeg and kept.dpi:
        options["dpi"] = kept.dpi
    elif kept.dpi and not (kept.exif and _dpi(kept.exif, _entries(kept.exif, _number(kept.exif, 4))) == kept.dpi):
        lost.append("dpi")
    return options, lost


def into_png(png: bytes, kept: Metadata, icc: bytes | None = None) -> bytes:
    """Add chunks behind the header: iCCP, eXIf, iTXt, zTXt, pHYs."""
    chunks = _chunk(b"iCCP", b"profile\0\0" + zlib.compress(icc)) if icc else b""
    chunks += _chunk(b"eXIf", kept.exif) if kept.exif is not None else b""
    texts = [(key, _utf8(value)) for key, value in kept.texts]
    for key, value in texts + ([(_XMP_OF_PNG, kept.xmp)] if kept.xmp is not None else []):
        chunks += _chunk(b"iTXt", key.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + value)
    if kept.iptc:
        block = _in_photoshop(kept.iptc)
        text = f"\niptc\n{len(block):8}\n{block.hex()}\n".encode()
        chunks += _chunk(b"zTXt", _IPTC_OF_PNG.encode() + b"\0\0" + zlib.compress(text))
    if kept.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in kept.dpi), 1))
    after_header = 8 + 25  # signature, IHDR
    return png[:after_header] + chunks + png[after_header:]


def _utf8(text: str) -> bytes:
    content = text.encode("utf-8", "surrogateescape")
    with contextlib.suppress(UnicodeDecodeError):
        content.decode()
        return content
    return content.decode("latin-1").encode()  # what older programs write into a JPEG's comment


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def into_tiff(tiff: bytes, exif: bytes | None) -> bytes:
    """Append an EXIF block to a TIFF of the same byte order, and a first directory with the entries of both."""
    if exif is None:
        return tiff
    result = bytearray(tiff + b"\0" * (len(tiff) % 2))
    order, start = byte_order(tiff), _number(tiff, 4)
    rows = {entry.tag: tiff[entry.at : entry.at + 12] for entry in _entries(tiff, start)}
    after = start + 2 + 12 * len(rows)
    block = bytearray(exif)
    entries = _entries(block, _number(block, 4))
    _move(block, entries, len(result))
    own = {entry.tag: bytes(block[entry.at : entry.at + 12]) for entry in entries}
    rows = own | rows | {tag: own[tag] for tag in _RESOLUTION if tag in own}
    result += block + b"\0" * (len(block) % 2)
    struct.pack_into(order + "I", result, 4, len(result))
    return bytes(result) + _directory(order, rows, tiff[after : after + 4])


def _move(block: bytearray, entries: list[_Entry], by: int) -> None:
    for entry in entries:
        if entry.tag in (_EXIF, _GPS):
            _move(block, _entries(block, _number(block, entry.start)), by)
        if entry.tag in (_EXIF, _GPS) or entry.size > 4:
            struct.pack_into(byte_order(block) + "I", block, entry.at + 8, _number(block, entry.at + 8) + by)
