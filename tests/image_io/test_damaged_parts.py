"""What lies beside an image and cannot be read is left out alone, by name; what other programs keep there is kept."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from png_files import png_bytes

from face2scene.image_io.metadata import Metadata
from face2scene.image_io.photos import ImageError, Photo, read_photo, write_photo

RNG = np.random.default_rng(0)
COLOUR = RNG.random((15, 20, 3))
EIGHT = (COLOUR * 255).round().astype(np.uint8)
IPTC = b"\x1c\x02\x50\x00\x07J\xc3\xbcrgen"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of one directory, of (tag, type, count, value); values of more than four bytes behind it."""
    rows, values, at = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        rows += struct.pack("<HHI", tag, kind, count)
        rows += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", at + len(values))
        values += value if len(value) > 4 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + values


def resolution(x: int, y: int, unit: int) -> bytes:
    """EXIF of a resolution; y in hundredths."""
    values = [(282, 5, 1, struct.pack("<II", x, 1)), (283, 5, 1, struct.pack("<II", y, 100))]
    return exif_of(*values, (296, 3, 1, struct.pack("<H", unit)))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"gAMA", b"\1"),
        (b"cHRM", b"\1\2"),
        (b"pHYs", b"\1"),
        (b"zTXt", b"Title\0\0" + zlib.compress(bytes(3_000_000))),  # more than Pillow unpacks
        (b"tEXt", None),
    ],
)
def test_damaged_chunk_is_left_out_alone(tmp_path, deep, kind, content):
    damaged = chunk(kind, content) if content else chunk(kind, b"Title\0A day")[:-1] + b"!"  # or a wrong checksum
    write_photo(tmp_path / "a.png", COLOUR, like=Photo(COLOUR, bits=16 if deep else 8))
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(png[:33] + damaged + chunk(b"tEXt", b"Author\0Ann") + png[33:])
    photo = read_photo(tmp_path / "b.png")
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.51 / (65535 if deep else 255))
    assert photo.warnings == (f"Damaged parts beside the image are left out: {kind.decode()}.",)
    assert photo.metadata.texts == (("Author", "Ann"),)


def test_resolution_of_a_wrong_type(tmp_path):
    """Bytes where EXIF has fractions: Pillow then refuses the JPEG."""
    image = Image.new("RGB", (16, 16), (200, 90, 40))
    entries = [(282, 1, 1, b"H"), (283, 1, 1, b"H"), (296, 3, 1, b"\2\0")]
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif_of(*entries), comment="A day")
    photo = read_photo(tmp_path / "a.jpg")
    np.testing.assert_allclose(photo.image[8, 8] * 255, (200, 90, 40), atol=3)
    assert photo.warnings == ("Damaged parts beside the image are left out: APP1.",)
    assert photo.metadata == Metadata(texts=(("Comment", "A day"),))
    image.save(tmp_path / "a.png", exif=exif_of(*entries))
    assert read_photo(tmp_path / "a.png").metadata.dpi is None


def test_damaged_image_data_stay_refused(tmp_path):
    png = bytearray(png_bytes(Image.fromarray(EIGHT)))
    png[60] ^= 255
    (tmp_path / "a.png").write_bytes(png[:33] + chunk(b"gAMA", b"\1") + png[33:])
    with pytest.raises(ImageError, match=r"a\.png cannot be read as an image"):
        read_photo(tmp_path / "a.png")


@pytest.mark.parametrize("wrapped", [True, False])
def test_iptc_of_a_png_is_kept(tmp_path, wrapped):
    """As Exiv2 and ImageMagick write it: hexadecimal in lines, in Photoshop's block or as it is."""
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC if wrapped else IPTC
    text = f"\niptc\n{len(block):8}\n{block.hex()[:20]}\n{block.hex()[20:]}\n".encode()
    png = png_bytes(Image.fromarray(EIGHT))
    content = b"Raw profile type iptc\0\0" + zlib.compress(text)
    (tmp_path / "a.png").write_bytes(png[:33] + chunk(b"zTXt", content) + png[33:])
    photo = read_photo(tmp_path / "a.png")
    for suffix in ("png", "jpg", "tif"):
        assert write_photo(tmp_path / f"b.{suffix}", photo.image, like=photo) == []
        again = read_photo(tmp_path / f"b.{suffix}")
        assert photo.metadata.iptc == again.metadata.iptc == IPTC and again.metadata.texts == ()


def test_damaged_iptc_of_a_png_is_none(tmp_path):
    png = png_bytes(Image.fromarray(EIGHT))
    for text in (b"\niptc\n 4\nxyz\n", b"", b"\niptc\n 4\n00000000\n"):
        content = b"Raw profile type iptc\0\0" + zlib.compress(text)
        (tmp_path / "a.png").write_bytes(png[:33] + chunk(b"zTXt", content) + png[33:])
        assert read_photo(tmp_path / "a.png").metadata.iptc is None


@pytest.mark.parametrize(("unit", "inch"), [(2, 1.0), (3, 2.54), (1, None)])
def test_resolution_of_exif_is_kept(tmp_path, unit, inch):
    """In both directions, and as none where its unit is none; a WebP has it in EXIF alone."""
    for fmt in ("PNG", "WEBP", "JPEG"):
        Image.fromarray(EIGHT).save(tmp_path / "a", fmt, exif=b"Exif\0\0" + resolution(118, 11811, unit))
        photo = read_photo(tmp_path / "a")
        expected = None if inch is None else pytest.approx((118 * inch, 118.11 * inch))
        assert photo.metadata.dpi == expected
        for suffix in ("png", "tif", "webp"):
            assert write_photo(tmp_path / f"b.{suffix}", photo.image, like=photo) == []
            again = read_photo(tmp_path / f"b.{suffix}").metadata.dpi  # a PNG counts whole pixels a metre
            assert again == (None if inch is None else pytest.approx((118 * inch, 118.11 * inch), abs=0.02))


def test_bmp_without_any_opacity_is_opaque(tmp_path):
    """Programs that know no transparency leave 0 there; viewers show the image."""
    for opacity in (0, 9):
        pixels = np.dstack([EIGHT[..., ::-1], np.full((15, 20), opacity, np.uint8)])
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 108, 20, -15, 1, 32, 3, pixels.size, 2835, 2835, 0, 0) + masks.ljust(
            68, b"\0"
        )
        (tmp_path / "a.bmp").write_bytes(
            b"BM" + struct.pack("<IHHI", 122 + pixels.size, 0, 0, 122) + head + pixels.tobytes()
        )
        photo = read_photo(tmp_path / "a.bmp")
        np.testing.assert_allclose(photo.image, COLOUR, atol=0.51 / 255)
        assert (photo.alpha is None) == (opacity == 0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_planes_with_alpha_are_read(tmp_path, bits, channels, kind):
    top, alpha = 2**bits - 1, np.tile(np.linspace(0.2, 1, 20), (15, 1))
    colour = COLOUR[..., :channels] * (alpha[..., None] if kind == "assocalpha" else 1)
    planes = np.moveaxis((np.dstack([colour, alpha]) * top).round().astype(f"u{bits // 8}"), -1, 0)
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric=photometric, planarconfig="separate", extrasamples=[kind])
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_allclose(photo.alpha, alpha, atol=0.51 / top)
    expected = COLOUR[..., :channels].repeat(3 // channels, 2)
    np.testing.assert_allclose(photo.image, expected, atol=(6 if kind == "assocalpha" else 0.51) / top)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"P6 2 2 255\n", "PPM"),
        (b"v/1\1", "OpenEXR"),
        (b"#?RADIANCE", "Radiance"),
        (b"qoif", "QOI"),
        (b"II\xbc\1", "XR"),
    ],
)
def test_format_that_is_not_read_is_named(tmp_path, head, name):
    (tmp_path / "a.jpg").write_bytes(head + bytes(30))
    with pytest.raises(ImageError, match=f"it is .*{name}.*, which is not read"):
        read_photo(tmp_path / "a.jpg")
