"""What a file declares beside its samples decides how they are read, and what it leaves open is refused or named."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from icc import grey_profile
from PIL import Image, ImageCms
from png_files import png_bytes
from tiff_files import tiff_bytes

from face2scene.image_io.photos import ImageError, Photo, read_photo, write_photo
from face2scene.image_io.profiles import adobe_rgb, display_p3

RNG = np.random.default_rng(0)
COLOUR = RNG.random((15, 21, 3))
GREY = np.linspace(0, 1, 15 * 21).reshape(15, 21)
EIGHT = (COLOUR * 255).round().astype(np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def levels(values: np.ndarray, bits: int) -> np.ndarray:
    return (values * (2**bits - 1)).round().astype(f"<u{bits // 8}")


def p3_to_srgb(values: np.ndarray) -> np.ndarray:
    """Display P3 to sRGB by littlecms, of uint8."""
    profiles = ImageCms.ImageCmsProfile(io.BytesIO(display_p3())), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(values), *profiles)) / 255


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks (kind, content) behind its header."""
    added = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return png[:33] + added + png[33:]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("imagej", [True, False])
def test_stack_of_one_directory_is_named(tmp_path, bits, imagej):
    stack = levels(np.stack([GREY, 1 - GREY, GREY]), bits)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack, imagej=imagej, photometric="minisblack")
    content = bytearray(path.read_bytes())
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    struct.pack_into(f"{order}I", content, start + 2 + 12 * count, 0)  # as ImageJ writes large stacks
    path.write_bytes(content)
    photo = read_photo(path)
    np.testing.assert_allclose(photo.image[..., 0], GREY, atol=0.51 / (2**bits - 1))
    assert [note for note in photo.warnings if note.startswith("2 further pages")]


@pytest.mark.parametrize("bits", [8, 16])
def test_planes_of_colour_are_no_pages(tmp_path, bits):
    planes = np.moveaxis(levels(COLOUR, bits), -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert read_photo(tmp_path / "a.tif").warnings == ()


@pytest.mark.parametrize(
    ("data", "tags", "reason"),
    [
        (levels(GREY, 8), {258: (3, 8)}, "photometric"),
        (levels(COLOUR, 8), {258: (3, (8, 8, 8)), 277: (3, 3)}, "photometric"),
        (levels(COLOUR, 16), {258: (3, (16, 16, 16)), 277: (3, 3)}, "photometric"),
        (levels(COLOUR, 8), {258: (3, (5, 6, 5)), 262: (3, 2), 277: (3, 3)}, r"\(5, 6, 5\) bits"),
        (
            levels(COLOUR[:, :20].reshape(15, 15, 4), 8),
            {258: (3, (8,) * 4), 262: (3, 5), 277: (3, 4), 332: (3, 2)},
            "inks",
        ),
        (levels(GREY, 8).astype("<u2"), {258: (3, 16), 262: (3, 1)}, "8 or 12 bits in 16"),
    ],
)
def test_open_meaning_of_samples_is_refused(tmp_path, data, tags, reason):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(data.tobytes(), data.shape[1], data.shape[0], tags))
    with pytest.raises(ImageError, match=reason):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_undeclared_samples_are_named(tmp_path, bits, channels):
    values = COLOUR[..., :channels]
    data = levels(np.dstack([values, GREY]), bits).tobytes()
    tags = {258: (3, (bits,) * (channels + 1)), 262: (3, 1 if channels == 1 else 2), 277: (3, channels + 1)}
    (tmp_path / "a.tif").write_bytes(tiff_bytes(data, 21, 15, tags))
    photo = read_photo(tmp_path / "a.tif")
    assert photo.alpha is None and photo.warnings == ("1 extra samples a pixel are left out.",)
    np.testing.assert_allclose(photo.image[..., :channels], values, atol=0.51 / (2**bits - 1))


@pytest.mark.parametrize("bits", [8, 16])
def test_damaged_directory_behind_a_page(tmp_path, bits):
    tags = {258: (3, (bits,) * 3), 262: (3, 2), 277: (3, 3)}
    (tmp_path / "a.tif").write_bytes(tiff_bytes(levels(COLOUR, bits).tobytes(), 21, 15, tags, following=10**9))
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.51 / (2**bits - 1))
    assert photo.warnings == ("What follows the first page is damaged and left out.",)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("tag", [None, 1, 8])
def test_orientation_of_xmp_where_no_tag_is(tmp_path, bits, tag):
    tags = [(700, "B", len(XMP), XMP, True), *([(274, "H", 1, tag, True)] if tag else [])]
    tifffile.imwrite(tmp_path / "a.tif", levels(COLOUR, bits), photometric="rgb", extratags=tags, metadata=None)
    expected = np.rot90(COLOUR, {None: -1, 1: 0, 8: 1}[tag])
    np.testing.assert_allclose(read_photo(tmp_path / "a.tif").image, expected, atol=0.51 / (2**bits - 1))


def test_damaged_profile_is_named(tmp_path):
    image = Image.fromarray(EIGHT)
    (tmp_path / "a.png").write_bytes(with_chunks(png_bytes(image), (b"iCCP", b"x\0\0no zlib")))
    long = display_p3() + bytes(70_000)
    image.save(tmp_path / "b.jpg", icc_profile=struct.pack(">I", len(long)) + long[4:])
    content = (tmp_path / "b.jpg").read_bytes()
    second = content.index(b"ICC_PROFILE\0\x02") - 4
    (size,) = struct.unpack_from(">H", content, second + 2)
    (tmp_path / "b.jpg").write_bytes(content[:second] + content[second + 2 + size :])
    for name in ("a.png", "b.jpg"):
        photo = read_photo(tmp_path / name)
        assert photo.profile is None and photo.warnings == (
            "The colour profile is damaged: the colours were read as sRGB.",
        )


@pytest.mark.parametrize("primaries", [1, 12])
def test_cicp_of_a_png_decides_over_its_profile(tmp_path, primaries):
    middle = EIGHT // 2 + 60
    chunks = (b"cICP", bytes([primaries, 13, 0, 1])), (b"iCCP", b"x\0\0" + zlib.compress(adobe_rgb()))
    (tmp_path / "a.png").write_bytes(with_chunks(png_bytes(Image.fromarray(middle)), *chunks))
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_allclose(photo.image, p3_to_srgb(middle) if primaries == 12 else middle / 255, atol=1e-6)
    assert (photo.profile is None) == (primaries == 1)


def test_profile_of_a_bmp_is_applied(tmp_path):
    middle = EIGHT[:, :20] // 2 + 60
    rows, profile = middle[::-1, :, ::-1].tobytes(), display_p3()
    head = struct.pack("<IiiHHIIiiII", 124, 20, 15, 1, 24, 0, len(rows), 2835, 2835, 0, 0) + bytes(16)
    head += b"DEBM" + bytes(48) + struct.pack("<4I", 4, 124 + len(rows), len(profile), 0)  # LOGCOLORSPACE: embedded
    file = b"BM" + struct.pack("<IHHI", 138 + len(rows + profile), 0, 0, 138) + head + rows + profile
    (tmp_path / "a.bmp").write_bytes(file)
    photo = read_photo(tmp_path / "a.bmp")
    assert photo.profile == profile
    np.testing.assert_allclose(photo.image, p3_to_srgb(middle), atol=1e-6)


def test_avif_of_a_general_brand_is_read(tmp_path):
    large = Image.fromarray(EIGHT).resize((96, 64), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.avif", quality=95, subsampling="4:4:4")
    content = bytearray((tmp_path / "a.avif").read_bytes())
    content[8:12] = b"mif1"  # the major brand of HEIF's structure; `avif` is still among the compatible ones
    (tmp_path / "a.avif").write_bytes(content)
    np.testing.assert_allclose(read_photo(tmp_path / "a.avif").image, np.asarray(large) / 255, atol=0.1)


@pytest.mark.parametrize(("suffix", "bits"), [("webp", 8), ("png", 16), ("png", 8)])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_grey_profile_is_of_grey_files_alone(tmp_path, suffix, bits, with_alpha):
    image = np.repeat(np.linspace(0.2, 0.8, 64 * 96, dtype=np.float32).reshape(64, 96, 1), 3, 2)
    alpha = np.full((64, 96), 0.5, np.float32) if with_alpha else None
    photo = Photo(image, alpha, bits, grey=True, profile=grey_profile(1.0))
    notes = write_photo(tmp_path / f"a.{suffix}", image, like=photo)
    kept = Image.open(tmp_path / f"a.{suffix}").info.get("icc_profile")
    assert (kept is None) == (suffix == "webp") == any("a grey colour profile" in note for note in notes)
    back = read_photo(tmp_path / f"a.{suffix}")
    assert back.warnings == () and (back.grey or back.neutral) and (back.alpha is not None) == with_alpha
    np.testing.assert_allclose(back.image, image, atol=6 / 255)  # WebP is lossy, 8 bits at a gamma of 1.0 coarse


@pytest.mark.parametrize("suffix", ["nef", "cr3", "dng"])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_image_named_like_camera_raw_is_read(tmp_path, suffix, fmt):
    image = Image.fromarray(np.full((15, 21, 3), (200, 150, 100), np.uint8))
    image.save(tmp_path / f"a.{suffix}", format=fmt)
    np.testing.assert_allclose(read_photo(tmp_path / f"a.{suffix}").image * 255, np.asarray(image), atol=2)
