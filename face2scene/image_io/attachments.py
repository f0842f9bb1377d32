"""What is left out by name: formats that are not read, and what a photo file holds beside its image, such as pages."""

import io
import re
from collections.abc import Iterator
from math import prod

import numpy as np
from PIL import ExifTags, Image

# Boxes of HEIF that turn or mirror an image have nine bytes; a video has its file type first.
_TURN = re.compile(rb"\0\0\0\x09(irot|imir)")
_VIDEO = re.compile(rb"ftyp(mp4|isom|iso\d|avc1|qt  |3gp)|MotionPhoto_Data")
_VIDEO_IN_HEIC = re.compile(rb"mpvd(.{4}|.{12})ftyp", re.DOTALL)
_GAIN_MAP = re.compile(rb"hdrgm:Version|urn:iso:std:iso:ts:21496|hdrgainmap")
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
P3 = 12  # of H.273's primaries, Display P3; others that need no word are BT.709, unspecified, and BT.601
_PRIMARIES = (1, 2, 5, 6, P3)
_STATED = re.compile(rb"cICP(.)(.)|colrnclx\0(.)\0(.)", re.DOTALL)  # of PNG; of HEIF and AVIF: primaries, transfer
# Formats that are not read, by how their files begin.
_OTHERS = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG-LS": rb"\xff\xd8.*\xff\xf7",
    "a JPEG of 12 bits": rb"\xff\xd8.*\xff[\xc1\xc2]..\x0c",
    "Photoshop": rb"8BPS",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG or HTML": rb"\s*<",
    "a ZIP archive": rb"PK\x03\x04",
    "PPM, PGM or PFM": rb"P[1-7Ff]\s",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RA",
    "QOI": rb"qoif",
    "JPEG XR": rb"II\xbc",
    "an icon": rb"\0\0[\1\2]\0",
    "a video": rb"....ftyp(mp4|isom|avc1|qt  |3gp|M4V)|\x1aE\xdf\xa3",
}
_HEIC, _ANY = (b"heic", b"heix", b"hevc", b"heim", b"heis"), (b"mif1", b"msf1")  # brands; the last may hold AV1, too
# What ImageJ and tifffile write where one directory stands for a stack of images.
_IMAGEJ = re.compile(r"ImageJ=.*^images=(\d+)", re.DOTALL | re.MULTILINE)
_SHAPED = re.compile(r'\{"shape": \[(\d+(?:, \d+)*)\]')
_HEAD = 2**16  # bytes, in which a file declares its colours
_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue: x and y
_DEPTH = 32997  # TIFF's ImageDepth: slices of a volume


def left_out(image: Image.Image, content: bytes) -> list[str]:
    """A sentence for each part of a file that is not read.

    Args:
        image: opened, not loaded yet.
        content: the file's bytes; empty for an image in memory.
    """
    info, notes = image.info, []
    tags = getattr(image, "tag_v2", {})
    values = image.width * image.height * int(tags.get(ExifTags.Base.SamplesPerPixel, 1))
    stacked = stack_size(str(tags.get(ExifTags.Base.ImageDescription, "")), values)
    pages = max(getattr(image, "n_frames", 1) * int(tags.get(_DEPTH, 1)), stacked) - 1
    gain_map = _GAIN_MAP.search(content) is not None
    if pages > 0 and not (gain_map and pages == 1 and image.format in ("JPEG", "MPO")):
        notes.append(f"{pages} further pages or frames are left out.")
    if gain_map:
        notes.append("The gain map for HDR displays is left out.")
    if info.get("depth_images"):
        notes.append(f"{len(info['depth_images'])} depth maps are left out.")
    others = [kind for kind in info.get("aux") or {} if "gainmap" not in kind.lower()]
    if others:
        notes.append(f"Auxiliary images are left out: {', '.join(others)}.")
    if _VIDEO.search(content, 16) or _VIDEO_IN_HEIC.search(content):
        notes.append("The video of a motion photo is left out.")
    extra = tags.get(ExifTags.Base.ExtraSamples, ())
    if unknown := len(extra) - (extra[:1] in ((1,), (2,))):
        notes.append(f"{unknown} extra samples a pixel are left out.")
    primaries, transfer = stated_colours(image, content)
    if transfer in _HDR:
        notes.append(f"HDR brightness ({_HDR[transfer]}) is read as if it were sRGB.")
    if primaries not in _PRIMARIES and not info.get("icc_profile"):
        notes.append(f"Colour primaries (number {primaries} of ITU-T H.273) are not applied: read as sRGB.")
    # Of AV1's configuration: the second bit of the third byte says more than 8 bits.
    av1 = content.find(b"av1C") if image.format == "AVIF" else -1
    if av1 > 0 and content[av1 + 6] & 0x40:
        notes.append("An AVIF of more than 8 bits is read at 8.")
    gamma = info.get("gamma")
    if not info.get("icc_profile") and "srgb" not in info:
        if gamma and abs(gamma - 1 / 2.2) > 0.02:
            notes.append(f"The PNG's gamma of {gamma:g} is not applied: the colours were read as sRGB.")
        if any(abs(one - srgb) > 0.01 for one, srgb in zip(info.get("chromaticity", ()), _SRGB, strict=False)):
            notes.append("The PNG's primaries are not applied: the colours were read as sRGB.")
    if _MORE_XMP in content:
        notes.append("What XMP keeps in further segments is left out.")
    return notes


def stack_size(description: str, values: int) -> int:
    """The images, each of so many values, that a TIFF's description says lie one after the other; 1 if it says none."""
    if found := _IMAGEJ.match(description):
        return int(found[1])
    shape = _SHAPED.match(description)
    return prod(map(int, shape[1].split(", "))) // values if shape else 1


def is_heif(head: bytes) -> bool:
    """Whether a file that begins like this is a HEIC, and no AVIF."""
    brands = [head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4], "big"), len(head)), 4)]
    return head[4:8] == b"ftyp" and (head[8:12] in _HEIC or (head[8:12] in _ANY and b"avif" not in brands))


def stated_colours(image: Image.Image, content: bytes) -> tuple[int, int]:
    """Primaries and transfer characteristics of ITU-T H.273 that a PNG, HEIC or AVIF states; 2 where it does not."""
    stated = _STATED.search(content, 0, _HEAD) if image.format in ("PNG", "HEIF", "AVIF") else None
    if stated:
        primaries, transfer = (max(one) for one in stated.groups() if one)
        return primaries, transfer
    known = image.info.get("nclx_profile") or {}
    return known.get("color_primaries", 2), known.get("transfer_characteristics", 2)


def lacks_data(image: Image.Image, content: bytes) -> bool:
    """Whether a JPEG with an end marker ends early; its decoder fills the rest, mostly with grey 128, without a word.

    Image data in front of the end marker are decoded only where something is missing.
    """
    last = np.array(image.getpixel((image.width - 1, image.height - 1)))
    if image.format not in ("JPEG", "MPO") or not ("progressive" in image.info or np.isin(last, (127, 128)).all()):
        return False
    start = 2
    while (marker := content[start + 1]) != 0xDA:  # thumbnails lie in the segments before the image's data
        start += 1 if marker == 0xFF else 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    end = content.find(b"\xff\xd9", start)
    more = b"".join(bytes(range(1, 255)) + b"\xff" + bytes([restart]) for restart in range(0xD0, 0xD8))
    with Image.open(io.BytesIO(content[:end] + more + more + content[end:]), formats=["JPEG"]) as longer:
        return longer.tobytes() != image.tobytes()


_NEEDED = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # of a PNG's ancillary chunks, for transparency and animation


def without_damaged_parts(content: bytes) -> tuple[bytes, list[str]]:
    """A PNG or JPEG without what Pillow cannot read beside the image, such as one text or EXIF, and its names.

    Other files come back as they are.
    """
    fmt = "PNG" if content.startswith(b"\x89PNG") else "JPEG" if content.startswith(b"\xff\xd8\xff") else ""
    if not fmt:
        return content, []
    start, buffer = {"PNG": 8, "JPEG": 2}[fmt], io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, fmt)
    small = buffer.getvalue()
    place = start + (25 if fmt == "PNG" else 0)  # behind the header
    kept, damaged = [content[:start]], []
    for name, part in _parts_of_png(content) if fmt == "PNG" else _parts_of_jpeg(content):
        if name:
            try:
                with Image.open(io.BytesIO(small[:place] + part + small[place:]), formats=[fmt]) as image:
                    image.load()
            except Exception:  # Pillow raises almost anything here
                damaged.append(name)
                continue
        kept.append(part)
    return b"".join(kept), damaged


def _parts_of_png(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Chunks, those that may be left out with their names."""
    at = 8
    while at < len(content):
        end, kind = at + 12 + int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        yield kind.decode("latin-1") if kind[:1].islower() and kind not in _NEEDED else "", content[at:end]
        at = end


def _parts_of_jpeg(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Segments in front of the image's data, those that may be left out with their names, and the rest."""
    at = 2
    while content[at : at + 1] == b"\xff" and (marker := content[at + 1 : at + 2]) != b"\xda":
        end = at + (1 if marker == b"\xff" else 2 + int.from_bytes(content[at + 2 : at + 4], "big"))
        name = "COM" if marker == b"\xfe" else f"APP{marker[0] - 0xE0}" if b"\xe0" <= marker <= b"\xef" else ""
        yield name, content[at:end]
        at = end
    yield "", content[at:]


def turn_of_heif(image: Image.Image, content: bytes, notes: list[str]) -> int:
    """The orientation (1 to 8) that is still to be applied to a decoded HEIC.

    libheif applies that of the container. The standard lets readers ignore EXIF's, and a photo with no other is shown
    sideways; so it is applied where the container has none.
    """
    stated = image.info.get("original_orientation") or 1
    if stated == 1 or _TURN.search(content):
        return 1
    notes.append(f"EXIF alone states the orientation ({ExifTags.Base.Orientation.name} {stated}); it was applied.")
    return int(stated)


def kind_of(head: bytes) -> str:
    """What a file that no reader knows begins like."""
    if not head.strip(b"\0"):
        return "it is empty" if not head else "it begins with zeros"
    kind = next((name for name, signature in _OTHERS.items() if re.match(signature, head, re.DOTALL)), None)
    return f"it is {kind}, which is not read" if kind else "it is damaged, or in a format that is not read"
