"""What a photo file holds beside its image, which is left out by name: pages, frames, gain and depth maps, videos."""

import re

from PIL import ExifTags, Image

# Boxes of HEIF that turn or mirror an image have nine bytes; a video has its file type first.
_TURN = re.compile(rb"\0\0\0\x09(irot|imir)")
_VIDEO = re.compile(rb"ftyp(mp4|isom|iso\d|avc1|qt  |3gp)|MotionPhoto_Data")
_VIDEO_IN_HEIC = re.compile(rb"mpvd(.{4}|.{12})ftyp", re.DOTALL)
_GAIN_MAP = re.compile(rb"hdrgm:Version|urn:iso:std:iso:ts:21496|hdrgainmap")
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def left_out(image: Image.Image, content: bytes) -> list[str]:
    """A sentence for each part of a file that is not read.

    Args:
        image: opened, not loaded yet.
        content: the file's bytes; empty for an image in memory.
    """
    info, notes = image.info, []
    pages = getattr(image, "n_frames", 1) - 1
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
    transfer = (info.get("nclx_profile") or {}).get("transfer_characteristics")
    if transfer in _HDR:
        notes.append(f"HDR brightness ({_HDR[transfer]}) is read as if it were sRGB.")
    # Of AV1's configuration: the second bit of the third byte says more than 8 bits.
    av1 = content.find(b"av1C") if image.format == "AVIF" else -1
    if av1 > 0 and content[av1 + 6] & 0x40:
        notes.append("An AVIF of more than 8 bits is read at 8.")
    gamma = info.get("gamma")
    if gamma and abs(gamma - 1 / 2.2) > 0.02 and not info.get("icc_profile") and "srgb" not in info:
        notes.append(f"The PNG's gamma of {gamma:g} is not applied: the colours were read as sRGB.")
    return notes


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
