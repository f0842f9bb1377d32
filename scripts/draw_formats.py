"""Write docs/formats.md from the code: a file of every format is made, read and written, and what is left is listed.

python scripts/draw_formats.py [FILE]
"""

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms

from face2scene.common.files import atomic_write
from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.deep import encode_png, encode_tiff
from face2scene.image_io.metadata import Metadata
from face2scene.image_io.photos import FORMATS, RAW_SUFFIXES, SUFFIXES, Photo, read_photo, write_photo

ROWS, COLUMNS = np.mgrid[0:32, 0:48].astype(np.float32)
COLOUR = np.stack([COLUMNS / 47, ROWS / 31, (ROWS + COLUMNS) / 78], -1)
LEVELS = (COLOUR * 255).round().astype(np.uint8)
DEEP = (COLOUR * 65535).round().astype(np.uint16)
ALPHA = ((COLUMNS > 24) * 255).astype(np.uint8)
READING = "format | bits a channel | transparency | colour profile | orientation applied | EXIF kept | pages and frames"
WRITING = "format | bits | transparency | profile | grey | EXIF | XMP | IPTC | dpi | texts | named as left out"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def wide_profile() -> bytes:
    """sRGB with red and blue exchanged, so that no reader takes it for sRGB."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ").replace(b"tmp ", b"bXYZ")


def exif(orientation: int = 1) -> Image.Exif:
    """A camera's name, and an orientation."""
    block = Image.Exif()
    block[271], block[274] = "Camera", orientation
    return block


def saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    """An image in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def deep_heic() -> bytes:
    """Ten bits a channel."""
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (48, 32), DEEP.tobytes()).save(buffer, quality=95, chroma=444)
    return buffer.getvalue()


def read(suffix: str, content: bytes) -> Photo | None:
    """The photo, or None where it is refused."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        try:
            return read_photo(path)
        except ValueError:
            return None


def yes(value: object) -> str:
    """A cell."""
    return "yes" if value else "no"


def reading() -> list[list[str]]:
    """Suffixes, bits, transparency, profile, orientation, EXIF, further pages of every format that is read."""
    pillow_heif.register_heif_opener()
    plain, clear = Image.fromarray(LEVELS), Image.fromarray(np.dstack([LEVELS, ALPHA]))
    deep: dict[str, Callable[[], bytes]] = {
        "PNG": lambda: encode_png(DEEP),
        "TIFF": lambda: encode_tiff(DEEP, Metadata(), None),
        "HEIF": deep_heic,
        "AVIF": lambda: imagecodecs.avif_encode(DEEP >> 6, bitspersample=10, level=95),
    }
    rows = []
    for fmt, suffixes in (
        ("JPEG", ".jpg .jpeg .jpe .jfif"),
        ("PNG", ".png"),
        ("TIFF", ".tif .tiff"),
        ("WEBP", ".webp"),
        ("HEIF", ".heic .heif"),
        ("AVIF", ".avif"),
        ("GIF", ".gif"),
        ("BMP", ".bmp"),
    ):
        suffix = suffixes.split()[0]
        assert set(suffixes.split()) <= set(SUFFIXES)
        with_alpha = read(suffix, saved(clear if fmt != "JPEG" else plain, fmt))
        bits = [photo.bits for photo in (read(suffix, deep[fmt]()) if fmt in deep else None,) if photo]
        tagged = read(suffix, saved(plain, fmt, icc_profile=wide_profile()))
        turned = read(suffix, saved(plain, fmt, exif=exif(6)))
        more = {} if fmt == "BMP" else {"save_all": True, "append_images": [Image.fromarray(LEVELS[::-1])]}
        pages = read(suffix, saved(plain, "MPO" if fmt == "JPEG" else fmt, **more))
        rows.append(
            [
                f"{fmt} ({suffixes})",
                " and ".join(map(str, sorted({8, *bits}))),
                yes(with_alpha and with_alpha.alpha is not None),
                yes(tagged and tagged.profile),
                yes(turned and turned.image.shape[0] == 48),
                yes(turned and turned.metadata.exif),
                "first; the others are named" if pages and pages.warnings else "one",
            ]
        )
    rows.append([f"camera RAW ({' '.join(RAW_SUFFIXES)})", "16", "no", "no", "yes", "of DNG and its kin", "one"])
    return rows


def writing() -> list[list[str]]:
    """What a photo with everything keeps in every format that is written."""
    metadata = Metadata(
        exif().tobytes().removeprefix(b"Exif\0\0"),
        XMP,
        b"\x1c\x02\x05\0\1a",
        (("Title", "a"), ("Comment", "b")),
        (300, 300),
    )
    photo = Photo(COLOUR, ALPHA / np.float32(255), bits=16, profile=wide_profile(), metadata=metadata)
    rows = []
    for fmt, suffix in FORMATS.items():
        with TemporaryDirectory() as folder:
            lost = write_photo(Path(folder) / f"a{suffix}", photo.image, like=photo)
            back = read_photo(Path(folder) / f"a{suffix}")
            grey = Photo(photo.image, grey=True)
            write_photo(Path(folder) / f"b{suffix}", photo.image, like=grey)
            still_grey = read_photo(Path(folder) / f"b{suffix}")
        kept = back.metadata
        rows.append(
            [
                fmt.upper(),
                str(back.bits),
                yes(back.alpha is not None),
                yes(back.profile),
                "yes" if still_grey.grey else "equal channels",
                *map(yes, (kept.exif, kept.xmp, kept.iptc, kept.dpi)),
                ", ".join(key for key, _ in kept.texts) or "no",
                lost[0].partition(": ")[2].rstrip(".") if lost else "nothing",
            ]
        )
    return rows


def table(head: str, rows: list[list[str]]) -> str:
    """Markdown."""
    names = head.split(" | ")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the page."""
    logging.disable(logging.WARNING)
    assert tifffile and set(RAW_SUFFIXES) < set(SUFFIXES)
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs/formats.md"
    page = f"""# Photo formats

`python scripts/draw_formats.py` writes this page: it makes a file of every format and reads and writes it with the
code. Everything needs the extras `photos` and `raw`; without them a file is refused, or read at 8 bits, with a
sentence that names the package.

## Read

{table(READING, reading())}

The content decides, not the suffix; other suffixes are counted as passed over, and folders that cannot be opened,
pipes, and links to folders or to nothing are named. A HEIC whose orientation is in EXIF alone is turned, with a
warning. A JPEG without a profile whose EXIF says Adobe RGB (interoperability index R03) is converted from it and
gets its profile; so is a PNG, HEIC or AVIF that states Display P3 by numbers (cICP, nclx). 8 bits with a profile
are converted by littlecms at 8 bits, in the darkest greys of a gamma of 1.0 up to 10 levels off; there a single
level of 8 bits, which a JPEG loses anyway, shows as up to 13. Of a TIFF whose first pages are reduced copies or
masks (NewSubfileType 1, 4) the first other page is read. An AVIF of more than 8 bits is read at 8, with a warning.
CMYK is converted by its profile, without one by the plain formula, with a warning. Refused by name: float samples
whose white is not 1, signed and complex samples, 8 or 12 bits in 16 that do not say so, TIFF of Lab or CMYK at 16
bits, of YCbCr without compression, of other inks than CMYK, of samples that differ in depth or without a
photometric interpretation, JPEG XL, JPEG 2000 and other formats, files that are cut short (JPEG with an end marker
behind the cut, too, except within its last few blocks), and more pixels than `max_pixels`. Left out by name:
further pages (those of ImageJ's stacks with one directory, too), extra samples that are no transparency or not
declared, gain maps, depth maps, videos of motion photos, XMP in further segments, parts of a PNG or JPEG beside its
image that are damaged (a text, a resolution, EXIF), each alone; not applied and named: damaged
profiles, HDR transfer (PQ, HLG), gamma and primaries of a PNG without a profile, other primaries by numbers
(BT.2020). Where XMP alone states the orientation, it is applied; cICP of a PNG decides over its profile; the
profile that a BMP embeds is applied. A DNG is cropped to its default crop. Of camera RAW the brightness is the
camera's; `develop.auto_bright=true` brightens, and the log says so.

## Written

What a photo with 16 bits, transparency, a profile and all metadata keeps; what a format does not hold is also in the
warnings of `restore.jsonl`. Transparency that a format does not hold is laid on white. A WebP
holds no grey profile: such a photo is written in sRGB. Metadata are copied as bytes;
orientation (applied), thumbnail and the layout of the old file are not.

{table(WRITING, writing())}
"""
    with atomic_write(place) as partial:
        partial.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
