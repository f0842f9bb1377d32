"""Files of every layout are read as declared or refused by name; a second library writes or reads them."""

import importlib.util
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from icc import grey_profile
from PIL import ExifTags, Image, ImageCms
from png_files import png_of_chunks

from face2scene.image_io.arrays import resize_with_alpha
from face2scene.image_io.metadata import Metadata
from face2scene.image_io.photos import ImageError, Photo, photo_of, read_photo, write_photo

RNG = np.random.default_rng(0)
RAMP = np.linspace(0.02, 1, 15 * 21, dtype=np.float32).reshape(15, 21)
COLOUR = RNG.random((15, 21, 3)).astype(np.float32)


def levels(values, dtype):
    return (values.astype(np.float64) * np.iinfo(dtype).max).round().astype(dtype)


@pytest.mark.parametrize("width", [16, 160, 216, 540, 560, 720, 1161, 1720])
@pytest.mark.parametrize(
    ("suffix", "mode"), [("bmp", "RGB"), ("bmp", "L"), ("tif", "RGB"), ("tif", "LA"), ("png", "P")]
)
def test_eight_bits_are_never_taken_for_sixteen(tmp_path, width, suffix, mode):
    colour = RNG.integers(100, 255, (8, width, 3), dtype=np.uint8)
    image = Image.fromarray(colour).convert("L" if mode == "LA" else mode).convert(mode)
    compression = {"compression": "tiff_lzw" if width % 3 else "tiff_adobe_deflate"} if suffix == "tif" else {}
    image.save(tmp_path / f"a.{suffix}", **compression)
    photo = read_photo(tmp_path / f"a.{suffix}")
    assert photo.bits == 8
    np.testing.assert_allclose(photo.image * 255, np.asarray(image.convert("RGB")), atol=1e-3)


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_colour_tiff_of_any_layout(tmp_path, byteorder, planar, tile, compression, dtype):
    values = COLOUR if dtype is np.float32 else levels(COLOUR, dtype)
    if planar == "separate":
        values = np.moveaxis(values, -1, 0)
    options = {"photometric": "rgb", "planarconfig": planar, "tile": tile, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=byteorder, metadata=None, **options)
    photo = read_photo(tmp_path / "a.tif")
    assert (photo.bits, photo.grey, photo.alpha) == (8 if dtype is np.uint8 else 16, False, None)
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.51 / (255 if dtype is np.uint8 else 65535))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiff_is_upright_and_positive(tmp_path, dtype, orientation, photometric):
    stored = levels(1 - RAMP if photometric == "miniswhite" else RAMP, dtype)
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, extratags=tags, metadata=None)
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    expected = Image.fromarray(RAMP)
    expected = np.asarray(expected if turned is None else expected.transpose(Image.Transpose(turned)))
    photo = read_photo(tmp_path / "a.tif")
    assert photo.grey
    np.testing.assert_allclose(photo.image[..., 0], expected, atol=0.51 / np.iinfo(dtype).max)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha", "unspecified"])
@pytest.mark.parametrize("channels", [1, 3])
def test_extra_samples_are_read_as_declared(tmp_path, dtype, kind, channels):
    alpha = np.linspace(0.5, 0.9, RAMP.size, dtype=np.float32).reshape(RAMP.shape)
    colour = COLOUR[..., :channels]
    stored = np.dstack([colour * alpha[..., None] if kind == "assocalpha" else colour, alpha])
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", levels(stored, dtype), photometric=photometric, extrasamples=[kind], metadata=None
    )
    photo = read_photo(tmp_path / "a.tif")
    step = 1 / np.iinfo(dtype).max
    expected = colour if channels == 3 else colour.repeat(3, 2)
    np.testing.assert_allclose(photo.image, expected, atol=3 * step)  # half a step each of both, over an alpha of 0.5
    if kind == "unspecified":
        assert photo.alpha is None and "1 extra samples" in photo.warnings[0]
    else:
        np.testing.assert_allclose(photo.alpha, alpha, atol=0.51 * step)


@pytest.mark.parametrize(
    ("values", "photometric", "reason"),
    [
        (RAMP * 255, "minisblack", "float samples must lie in"),
        (RAMP * np.float32(np.nan), "minisblack", "NaN"),
        (levels(RAMP, np.int32), "minisblack", "type int32"),
        ((RAMP * 4095).astype(np.uint16), "minisblack", "12 bits in 16"),
        (levels(RAMP, np.uint16), "cfa", "interpretation CFA"),
        (levels(COLOUR, np.uint8), "ycbcr", "interpretation YCBCR"),
        (levels(np.dstack([COLOUR, RAMP]), np.uint16), "separated", "interpretation SEPARATED"),
    ],
)
def test_undeclared_or_unread_tiff_is_refused(tmp_path, values, photometric, reason):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, metadata=None)
    with pytest.raises(ImageError, match=reason):
        read_photo(tmp_path / "a.tif")


def test_float_tiff_slightly_above_one_is_clipped(tmp_path):
    over = RAMP.copy()
    over[3, 4] = 1.004
    tifffile.imwrite(tmp_path / "a.tif", over, metadata=None)
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_allclose(photo.image[..., 0], over.clip(0, 1), atol=1e-6)
    assert "clipped" in photo.warnings[0]


def test_missing_tifffile_is_named(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", levels(COLOUR, np.uint16), photometric="rgb", metadata=None)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ModuleNotFoundError, match=r"face2scene\[photos\]"):
        read_photo(tmp_path / "a.tif")


def png_16_bit(values: np.ndarray, colour_type: int, key: bytes = b"") -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    transparent = [(b"tRNS", key)] if key else []
    return png_of_chunks(
        values.shape[1], values.shape[0], 16, colour_type, *transparent, (b"IDAT", zlib.compress(rows))
    )


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("with_key", [False, True])
def test_sixteen_bit_png_of_every_colour_type(tmp_path, colour_type, channels, with_key):
    stored = RNG.integers(1, 65536, (15, 21, channels), dtype=np.uint16)
    with_key = with_key and colour_type in (0, 2)  # the standard has a transparent colour for these alone
    key = stored[0, 0].astype(">u2").tobytes() if with_key else b""
    (tmp_path / "a.png").write_bytes(png_16_bit(stored, colour_type, key))
    photo = read_photo(tmp_path / "a.png")
    colour = stored[..., : 1 if channels < 3 else 3].astype(np.float32) / 65535
    assert photo.bits == 16 and photo.grey == (channels < 3)
    clear = (stored == stored[0, 0]).all(-1) & with_key
    np.testing.assert_allclose(photo.image[~clear], np.broadcast_to(colour, photo.image.shape)[~clear], atol=1e-6)
    if with_key:
        np.testing.assert_array_equal(photo.alpha == 0, clear)
    elif channels in (2, 4):
        np.testing.assert_allclose(photo.alpha, stored[..., -1] / 65535, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_level_of_grey_png(tmp_path, bits):
    stored = np.arange(64).reshape(4, 16) % 2**bits  # 16 pixels a row fill whole bytes
    packed = np.packbits(
        np.unpackbits(stored.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(4, -1), axis=1
    )
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    (tmp_path / "a.png").write_bytes(png_of_chunks(16, 4, bits, 0, (b"tRNS", b"\0\1"), (b"IDAT", data)))
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.alpha == 0, stored == 1)
    np.testing.assert_allclose(photo.image[stored != 1, 0], stored[stored != 1] / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_before_its_page_is_passed_over(tmp_path, dtype):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RAMP > 0.5, photometric="mask", subfiletype=4)
        file.write(levels(COLOUR, dtype), photometric="rgb")
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.51 / np.iinfo(dtype).max)
    assert any("1 further pages" in note for note in photo.warnings)


def test_tiff_of_webp_and_slices_of_a_volume(tmp_path):
    eight = levels(resize_with_alpha(COLOUR, RAMP, (32, 48))[0], np.uint8)
    lossless = {"compression": "webp", "compressionargs": {"level": 100, "lossless": True}}
    tifffile.imwrite(tmp_path / "a.tif", eight, photometric="rgb", metadata=None, **lossless)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([eight] * 16), photometric="rgb", volumetric=True, tile=(16, 16, 16))
    for name, notes in (("a.tif", 0), ("b.tif", 1)):
        photo = read_photo(tmp_path / name)
        np.testing.assert_allclose(photo.image, eight / 255, atol=1e-6)
        assert sum("15 further" in note for note in photo.warnings) == notes == len(photo.warnings)


@pytest.mark.parametrize("suffix", ["tif", "webp", "png", "gif"])
def test_further_pages_are_warned_of(tmp_path, suffix):
    frames = [Image.fromarray(levels(np.roll(COLOUR, k, 1), np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert "2 further pages" in read_photo(tmp_path / f"a.{suffix}").warnings[0]
    tifffile.imwrite(
        tmp_path / "deep.tif", levels(np.stack([RAMP] * 3), np.uint16), photometric="minisblack", metadata=None
    )
    assert "2 further pages" in read_photo(tmp_path / "deep.tif").warnings[0]


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg_with_and_without_adobe_marker(tmp_path, adobe):
    """Without the marker the inks are stored as they are, so the file's levels are those of Adobe's inverse."""
    image = Image.new("CMYK", (16, 16), (200, 20, 40, 10))
    image.save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    if not adobe:
        (tmp_path / "a.jpg").write_bytes(data[:at] + data[at + 16 :])
        image = Image.new("CMYK", (16, 16), (55, 235, 215, 245))
    expected = np.asarray(image.convert("RGB"))[8, 8]
    np.testing.assert_allclose(read_photo(tmp_path / "a.jpg").image[8, 8] * 255, expected, atol=4)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_grey_profile_is_applied_and_put_back(tmp_path, gamma, suffix):
    image = Image.fromarray(np.tile(np.arange(0, 256, 5, dtype=np.uint8), (16, 1)))
    image.save(tmp_path / "a.png", icc_profile=grey_profile(gamma))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(grey_profile(gamma)))
    expected = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_allclose(photo.image * 255, np.asarray(expected), atol=1.01)
    write_photo(tmp_path / f"b.{suffix}", photo.image, like=photo)
    with Image.open(tmp_path / f"b.{suffix}") as written:
        assert written.info["icc_profile"] == grey_profile(gamma)
        back, stored = np.asarray(written.convert("L"), int), np.asarray(image, int)
    lossless = suffix in ("png", "tif")
    np.testing.assert_allclose(back[stored >= 20], stored[stored >= 20], atol=1 if lossless else 8)
    np.testing.assert_allclose(back, stored, atol=4 if lossless else 8)  # near black 8 bits of sRGB are too few


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_equal_channels_come_back_equal(tmp_path, suffix):
    grey = np.repeat(levels(RAMP, np.uint8)[..., None], 3, 2)
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=60)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.neutral and not photo.grey
    write_photo(tmp_path / f"b.{suffix}", COLOUR, like=photo)
    with Image.open(tmp_path / f"b.{suffix}") as written:
        assert written.mode == "RGB" and np.ptp(np.asarray(written), axis=2).max() <= 2  # JPEG's and WebP's rounding
    Image.fromarray(levels(COLOUR, np.uint8)).save(tmp_path / "c.png")
    assert not read_photo(tmp_path / "c.png").neutral


def test_colour_under_zero_alpha_does_not_matter(tmp_path):
    disc = np.hypot(*np.mgrid[-16:16, -16:16]) < 11
    photos = []
    for hidden in ((0, 0, 0), (0, 255, 0), (255, 255, 255)):
        stored = np.zeros((32, 32, 4), np.uint8)
        stored[..., :3], stored[..., 3] = hidden, disc * 255
        stored[disc, :3] = (230, 60, 50)
        Image.fromarray(stored).save(tmp_path / "a.png")
        photos.append(read_photo(tmp_path / "a.png"))
    for photo in photos[1:]:
        np.testing.assert_array_equal(photo.image, photos[0].image)
    image, alpha = resize_with_alpha(photos[0].image, photos[0].alpha, (64, 64))
    with Image.open(tmp_path / "a.png") as stored:
        pillow = np.asarray(stored.resize((64, 64), Image.Resampling.BICUBIC), np.float32) / 255
    shown = image * alpha[..., None]
    np.testing.assert_allclose(shown, pillow[..., :3] * pillow[..., 3:], atol=2.5 / 255)  # Pillow rounds at every pass
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert read_photo(tmp_path / "clear.png").image.min() == 1


def exif_of(order: str, entries) -> bytes:
    """An EXIF block of one directory with (tag, type, count, value) as they are given."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    rows, values, at = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", at + len(values))
        values += (value + bytes(len(value) % 2)) if len(value) > 4 else b""
        rows += struct.pack(order + "HHI", tag, kind, count) + field
    return head + struct.pack(order + "H", len(entries)) + rows + bytes(4) + values


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_metadata_travels_as_bytes(tmp_path, order, suffix, bits):
    name = "Jürgen".encode()
    entries = [
        (0x010F, 2, 9, b"A Camera\0"),
        (0x0110, 2, 5000, b"\xff\xff\xff\xff\0"),
        (0x013B, 2, len(name) + 1, name + b"\0"),
    ]
    exif = exif_of(order, [*entries, (0x8298, 3, 2, struct.pack(order + "2H", 7, 8))])  # copyright of a wrong type
    iptc = b"\x1c\x02\x50\x00\x07" + name
    app13 = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)
    marker = b"\xff\xed" + struct.pack(">H", len(app13) + 2) + app13
    image = Image.fromarray(levels(COLOUR, np.uint8))
    image.save(
        tmp_path / "a.jpg", exif=b"Exif\0\0" + exif, xmp=b"<x>1</x>", dpi=(300, 300), comment="für", extra=marker
    )
    photo = read_photo(tmp_path / "a.jpg")
    assert len(photo.warnings) == 1 and "0x0110 is left out" in photo.warnings[0]
    like = Photo(photo.image, bits=bits, metadata=photo.metadata)
    write_photo(tmp_path / f"b.{suffix}", photo.image, like=like)
    data = (tmp_path / f"b.{suffix}").read_bytes()
    assert name + b"\0" in data and b"A Camera\0" in data and b"<x>1</x>" in data
    again = read_photo(tmp_path / f"b.{suffix}")
    assert not again.warnings
    with Image.open(tmp_path / f"b.{suffix}") as written:
        written.load()
        kept = written.getexif()
        assert kept[0x010F] == "A Camera" and 0x0110 not in kept and kept[0x8298] == 7  # the first, for Pillow
        if suffix != "webp":
            assert [round(float(value)) for value in written.info["dpi"]] == [300, 300]
    assert again.metadata.xmp == b"<x>1</x>"
    assert (again.metadata.iptc == iptc) == (suffix in ("jpg", "png", "tif"))
    assert (dict(again.metadata.texts).get("Comment") == "für") == (suffix in ("jpg", "png"))


def test_metadata_of_tiff_and_text_of_png(tmp_path, caplog):
    tags = [(0x010F, "s", 0, "A Camera", True), (0x013B, 2, 7, "Jürgen".encode(), True)]
    tifffile.imwrite(
        tmp_path / "a.tif",
        levels(COLOUR, np.uint16),
        photometric="rgb",
        extratags=tags,
        resolution=(200, 200),
        resolutionunit=2,
        metadata=None,
    )
    photo = read_photo(tmp_path / "a.tif")
    write_photo(tmp_path / "b.tif", photo.image, like=photo)
    with tifffile.TiffFile(tmp_path / "b.tif") as written:
        found = written.pages.first.tags
        assert found.valueof(0x010F) == "A Camera" and found.valueof(282) == (200, 1) and found.valueof(256) == 21
    assert "Jürgen".encode() in (tmp_path / "b.tif").read_bytes()
    texts = Metadata(texts=(("Title", "été"), ("Author", "Jürgen")))
    write_photo(tmp_path / "a.png", COLOUR, like=Photo(COLOUR, metadata=texts))
    assert read_photo(tmp_path / "a.png").metadata.texts == texts.texts
    assert not caplog.records
    write_photo(tmp_path / "a.webp", COLOUR, like=Photo(COLOUR, metadata=texts))
    assert "Title, Author" in caplog.text


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_grey_pillow_images_in_memory(mode):
    values = {"F": RAMP, "I": levels(RAMP, np.uint16).astype(np.int32), "I;16": levels(RAMP, np.uint16)}[mode]
    np.testing.assert_allclose(photo_of(Image.fromarray(values)).image[..., 0], RAMP, atol=0.51 / 65535)
    with pytest.raises(ImageError, match="cannot be read"):
        photo_of(Image.fromarray(RAMP * 255) if mode == "F" else Image.fromarray(np.full((4, 4), -5, np.int32)))


def test_compressed_deep_tiff_is_read_or_names_package(tmp_path):
    stored = levels(COLOUR, np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.tif"), stored[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])  # LZW
    if importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(ModuleNotFoundError, match=r"LZW.*imagecodecs.*face2scene\[photos\]"):
            read_photo(tmp_path / "a.tif")
        return
    np.testing.assert_allclose(read_photo(tmp_path / "a.tif").image, COLOUR, atol=0.51 / 65535)


@pytest.mark.parametrize("kind", ["tif8", "tif16", "jpg", "png", "webp"])
def test_damaged_files_are_refused_or_read(tmp_path, kind):
    """A few bytes changed anywhere, 60 times: an image of floats or one of two named errors, never another one."""
    path = tmp_path / f"a.{kind[:3] if kind != 'webp' else kind}"
    exif = exif_of("<", [(0x010F, 2, 9, b"A Camera\0")])
    write_photo(path, COLOUR, like=Photo(COLOUR, bits=16 if kind == "tif16" else 8, metadata=Metadata(exif)))
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for number in range(60):
        damaged = bytearray(data if number % 3 else data[: rng.integers(4, len(data))])
        for at in rng.integers(4, len(damaged), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_photo(path, max_pixels=10**6).image.dtype == np.float32
        except (ImageError, ModuleNotFoundError) as error:
            assert path.name in str(error) or "face2scene[" in str(error)


def adobe_jpeg(path, levels, *, index="R03", space=65535):
    """As a camera set to Adobe RGB writes it: no profile, and the interoperability index of DCF's option file."""
    exif = Image.Exif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.ColorSpace] = space
    inner[ExifTags.IFD.Interop] = {1: index} if index else {}
    exif[ExifTags.IFD.Exif] = inner
    Image.fromarray(levels).save(path, quality=95, subsampling=0, exif=exif)


def adobe_to_srgb(values):
    """Adobe RGB (1998), 4.3.1.2 and IEC 61966-2-1, of values in [0, 1]."""
    xyz = values ** (563 / 256) @ np.array(
        [[0.57667, 0.29734, 0.02703], [0.18556, 0.62736, 0.07069], [0.18823, 0.07529, 0.99134]]
    )
    linear = (xyz @ np.array([[3.2406, -0.9689, 0.0557], [-1.5372, 1.8758, -0.2040], [-0.4986, 0.0415, 1.0570]])).clip(
        0, 1
    )
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("index", "space"), [("R03", 65535), ("", 2)])
def test_adobe_rgb_by_exif_is_converted(tmp_path, index, space):
    levels = np.repeat(np.repeat(RNG.integers(110, 180, (4, 4, 3), dtype=np.uint8), 16, 0), 16, 1)
    adobe_jpeg(tmp_path / "a.jpg", levels, index=index, space=space)
    photo = read_photo(tmp_path / "a.jpg")
    expected = adobe_to_srgb(np.asarray(Image.open(tmp_path / "a.jpg")) / 255)
    np.testing.assert_allclose(photo.image, expected, atol=2 / 255)  # the profile's curve has 8 bits of fraction
    assert np.abs(photo.image - levels / 255).max() > 6 / 255  # and it is not what the bytes say in sRGB
    write_photo(tmp_path / "b.png", photo.image, like=photo)
    back = Image.open(tmp_path / "b.png")
    assert "Adobe RGB" in ImageCms.getProfileDescription(io.BytesIO(back.info["icc_profile"]))
    np.testing.assert_allclose(np.asarray(back) / 255, np.asarray(Image.open(tmp_path / "a.jpg")) / 255, atol=2 / 255)


def test_srgb_and_unknown_spaces_are_left(tmp_path):
    for name, index, space, notes in (("R98", "R98", 1, 0), ("unknown", "", 65535, 1)):
        adobe_jpeg(tmp_path / f"{name}.jpg", levels(COLOUR, np.uint8), index=index, space=space)
        photo = read_photo(tmp_path / f"{name}.jpg")
        assert photo.profile is None and len(photo.warnings) == notes
        np.testing.assert_allclose(photo.image * 255, np.asarray(Image.open(tmp_path / f"{name}.jpg")), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_page_behind_a_preview_is_read(tmp_path, dtype):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((5, 7, 3), dtype), photometric="rgb", subfiletype=1)
        file.write(levels(COLOUR, dtype), photometric="rgb")
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.51 / np.iinfo(dtype).max)
    assert any("1 further pages" in note for note in photo.warnings)
    tifffile.imwrite(tmp_path / "b.tif", levels(COLOUR, dtype), photometric="rgb", subfiletype=1)
    np.testing.assert_allclose(read_photo(tmp_path / "b.tif").image, COLOUR, atol=0.51 / np.iinfo(dtype).max)
