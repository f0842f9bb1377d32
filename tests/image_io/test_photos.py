"""Photo files come back with what they held; bad ones are named."""

import dataclasses
import importlib.util
import io
import sys

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational
from png_files import png_claiming

from face2scene.image_io.arrays import output_size
from face2scene.image_io.metadata import Metadata, shot_of
from face2scene.image_io.photos import ImageError, Photo, read_photo, write_photo

RNG = np.random.default_rng(0)
IMAGE = RNG.random((7, 9, 3)).astype(np.float32)  # odd sides


def swapped_profile() -> bytes:
    """A profile whose red and blue are exchanged: no colour is left where sRGB has it."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ").replace(b"tmp ", b"bXYZ")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"])
def test_every_format_round_trips(tmp_path, suffix):
    smooth = np.linspace(0.1, 0.9, 48 * 33 * 3, dtype=np.float32).reshape(33, 48, 3)
    write_photo(tmp_path / f"a{suffix}", smooth)
    back = read_photo(tmp_path / f"a{suffix}")
    assert np.abs(back.image - smooth).max() < (0.003 if suffix in (".png", ".tif", ".tiff") else 0.05)
    assert (back.bits, back.grey, back.alpha, back.profile) == (8, False, None, None)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_round_trip(tmp_path, suffix, channels):
    like = Photo(
        IMAGE, alpha=RNG.random((7, 9)).astype(np.float32) if channels == 4 else None, bits=16, grey=channels == 1
    )
    image = np.repeat(IMAGE[..., :1], 3, 2) if channels == 1 else IMAGE
    write_photo(tmp_path / f"a{suffix}", image, like=like)
    back = read_photo(tmp_path / f"a{suffix}")
    assert back.bits == 16 and back.grey == (channels == 1)
    np.testing.assert_allclose(back.image, image, atol=0.51 / 65535)
    if channels == 4:
        np.testing.assert_allclose(back.alpha, like.alpha, atol=0.51 / 65535)


def test_tifffile_reads_sixteen_bits(tmp_path):
    write_photo(tmp_path / "a.tif", IMAGE, like=Photo(IMAGE, bits=16))
    levels = tifffile.imread(tmp_path / "a.tif")
    assert levels.dtype == np.uint16
    np.testing.assert_allclose(levels / 65535, IMAGE, atol=0.51 / 65535)


def test_alpha_is_kept_and_restored(tmp_path):
    alpha = np.linspace(0, 1, 63, dtype=np.float32).reshape(7, 9)
    write_photo(tmp_path / "a.png", IMAGE, like=Photo(IMAGE, alpha))
    back = read_photo(tmp_path / "a.png")
    np.testing.assert_allclose(back.image[alpha > 0.5 / 255], IMAGE[alpha > 0.5 / 255], atol=0.51 / 255)
    np.testing.assert_allclose(back.alpha, alpha, atol=0.51 / 255)
    assert back.on_white()[0, 0].tolist() == [1, 1, 1]  # clear: the white below shows
    write_photo(tmp_path / "a.webp", back.image, like=back)
    assert read_photo(tmp_path / "a.webp").alpha is not None
    write_photo(tmp_path / "a.jpg", np.zeros((7, 9, 3)), like=back)  # holds none: laid on white
    assert read_photo(tmp_path / "a.jpg").image[0, 0].min() > 0.9


def test_opaque_alpha_is_dropped(tmp_path):
    Image.new("RGBA", (4, 3), (9, 9, 9, 255)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").alpha is None


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_greyscale_stays_greyscale(tmp_path, mode):
    Image.new(mode, (5, 4), 1 if mode == "1" else (70, 128) if mode == "LA" else 70).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.grey
    write_photo(tmp_path / "b.png", np.dstack([np.full((4, 5), v) for v in (0.9, 0.2, 0.1)]), like=photo)
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == ("LA" if mode == "LA" else "L")
    assert read_photo(tmp_path / "b.png").image[0, 0, 0] == pytest.approx(0.299 * 0.9 + 0.587 * 0.2 + 0.0114, abs=0.003)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_icc_profile_round_trip(tmp_path, suffix):
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    photo = read_photo(tmp_path / "a.png")
    assert np.abs(photo.image[0, 0] * 255 - (200, 40, 90)).max() > 50  # another colour in sRGB
    write_photo(tmp_path / f"b{suffix}", photo.image, like=photo)
    with Image.open(tmp_path / f"b{suffix}") as written:
        assert written.info["icc_profile"] == photo.profile
        assert np.abs(np.asarray(written)[8, 8].astype(int) - (200, 40, 90)).max() <= 4
    np.testing.assert_allclose(read_photo(tmp_path / f"b{suffix}").image, photo.image, atol=4 / 255)


def test_srgb_or_broken_profile_is_dropped(tmp_path):
    for number, data in enumerate((ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"nonsense")):
        Image.new("RGB", (4, 4), (200, 40, 90)).save(tmp_path / f"{number}.png", icc_profile=data)
        photo = read_photo(tmp_path / f"{number}.png")
        assert photo.profile is None
        np.testing.assert_allclose(photo.image[0, 0] * 255, (200, 40, 90), atol=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_orientation_is_applied_once(tmp_path, orientation, bits):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "A Camera"
    path = tmp_path / "a.png"
    write_photo(path, IMAGE, like=Photo(IMAGE, bits=bits, metadata=Metadata(exif.tobytes().removeprefix(b"Exif\0\0"))))
    photo = read_photo(path)
    with Image.open(path) as stored:
        stored.load()
        pillow = Image.fromarray((IMAGE * 255).round().astype(np.uint8))
        turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
        expected = pillow if turned is None else pillow.transpose(Image.Transpose(turned))
    np.testing.assert_allclose(photo.image * 255, np.asarray(expected), atol=0.51)
    write_photo(tmp_path / "b.jpg", photo.image, like=photo)
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.getexif()[0x010F] == "A Camera" and 0x0112 not in written.getexif()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_profile_is_converted_in_full_depth(tmp_path, monkeypatch, suffix):
    import cv2

    path = tmp_path / "a.png"
    ok, encoded = cv2.imencode(".png", (IMAGE * 65535).astype(np.uint16))
    assert ok
    import struct
    import zlib

    content = b"p3\0\0" + zlib.compress(swapped_profile())
    chunk = struct.pack(">I", len(content)) + b"iCCP" + content + struct.pack(">I", zlib.crc32(b"iCCP" + content))
    data = encoded.tobytes()
    path.write_bytes(data[:33] + chunk + data[33:])
    photo = read_photo(path)
    assert photo.bits == 16 and photo.profile == swapped_profile() and not photo.warnings
    shallow = Image.fromarray((IMAGE[..., ::-1] * 255).round().astype(np.uint8))  # OpenCV takes BGR
    shallow.save(tmp_path / "shallow.png", icc_profile=swapped_profile())
    np.testing.assert_allclose(photo.image, read_photo(tmp_path / "shallow.png").image, atol=3 / 255)
    write_photo(tmp_path / f"b{suffix}", photo.image, like=photo)
    again = read_photo(tmp_path / f"b{suffix}")
    assert again.bits == 16 and again.profile == photo.profile
    inside = (photo.image > 0.02) & (photo.image < 1)  # near black a level of 16 bits is more of sRGB's; others are cut
    np.testing.assert_allclose(again.image[inside], photo.image[inside], atol=16 / 65535)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    photo = read_photo(path)
    assert photo.bits == 8 and "face2scene[photos]" in photo.warnings[0]


def test_heic_is_read_or_names_package(tmp_path):
    if importlib.util.find_spec("pillow_heif") is None:
        (tmp_path / "a.heic").write_bytes(b"x")
        with pytest.raises(ModuleNotFoundError, match="pillow_heif"):
            read_photo(tmp_path / "a.heic")
        return
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 90))).save(tmp_path / "a.heic", quality=95)
    np.testing.assert_allclose(read_photo(tmp_path / "a.heic").image[20, 20] * 255, (200, 40, 90), atol=6)


def test_camera_raw_is_developed(weights):
    photo = read_photo(next(weights("sony_raw").glob("*.ARW")))
    assert photo.bits == 16 and photo.image.shape[2] == 3 and min(photo.image.shape[:2]) > 3000
    assert 0.02 < photo.image.mean() < 0.6


def test_unreadable_or_unwritable_raises(tmp_path):
    (tmp_path / "broken.dng").write_bytes(b"II*\0 not a photo")
    with pytest.raises(ImageError, match=r"broken\.dng cannot be developed"):
        read_photo(tmp_path / "broken.dng")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (tmp_path / "lies.jpg").write_bytes(buffer.getvalue())
    assert read_photo(tmp_path / "lies.jpg").image.shape == (4, 4, 3)  # the content decides, not the suffix
    with pytest.raises(ImageError, match="suffix must be one of"):
        write_photo(tmp_path / "a.gif", IMAGE)
    with pytest.raises(ImageError, match="NaN"):
        write_photo(tmp_path / "a.png", IMAGE * np.nan)
    with pytest.raises(ImageError, match="transparency has"):
        write_photo(tmp_path / "a.png", IMAGE, like=Photo(IMAGE, np.ones((2, 2), np.float32)))
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(ImageError, match="too long for webp"):
        write_photo(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.float32))


def test_metadata_is_kept_and_corrected(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0132] = "A Camera", 6, "2026:05:01 12:00:00"
    exif[0x8769] = {
        0x9003: "2026:05:01 12:00:00",
        0x829A: IFDRational(1, 125),
        0xA002: 9,
        0xA003: 7,
        0x927C: b"maker's own",
    }
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 7.5), 3: "E", 4: (11.0, 34.0, 30.0)}
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:creator="Ann"/></x:xmpmeta>'
    Image.fromarray((IMAGE * 255).astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif, xmp=xmp)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.image.shape == (9, 7, 3)  # turned
    larger = np.zeros((18, 14, 3), np.float32)
    for bits in (8, 16):
        like = dataclasses.replace(photo, bits=bits)
        for suffix in (".jpg", ".png", ".webp", ".tif"):
            write_photo(tmp_path / f"b{suffix}", larger, like=like)
            with Image.open(tmp_path / f"b{suffix}") as written:
                written.load()
                kept = written.getexif()
                inner, place = kept.get_ifd(0x8769), kept.get_ifd(0x8825)
            assert kept[0x010F] == "A Camera" and 0x0112 not in kept
            assert inner[0x9003] == "2026:05:01 12:00:00" and float(inner[0x829A]) == pytest.approx(0.008)
            assert (inner[0xA002], inner[0xA003], inner[0x927C]) == (14, 18, b"maker's own")
            assert place[2] == (48.0, 8.0, 7.5) and place[3] == "E"
            again = read_photo(tmp_path / f"b{suffix}")
            assert b'dc:creator="Ann"' in again.metadata.xmp and b"Orientation" not in again.metadata.xmp
            assert again.bits == (bits if suffix in (".png", ".tif") else 8)


def test_unwritable_exif_is_dropped(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05broken")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    photo = read_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "b.jpg", photo.image, like=photo)
    assert read_photo(tmp_path / "b.jpg").image.shape == (4, 4, 3)


def test_shot_of_missing_file_is_none():
    assert shot_of("no such file") is None


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a", b"\xff\xd8\xff"])
def test_disguised_formats_raise(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg cannot be read as an image"):
        read_photo(tmp_path / "a.jpg")


def test_heic_is_detected_by_content(tmp_path):
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 90))).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    assert read_photo(tmp_path / "a.jpg").image.shape == (48, 64, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (513, 3), (31, 17)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_any_size_round_trips(tmp_path, size, suffix):
    write_photo(tmp_path / f"a{suffix}", np.full((*size, 3), 0.5, np.float32))
    assert read_photo(tmp_path / f"a{suffix}").image.shape == (*size, 3)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((7, 9), 1, (7, 9)), ((7, 9), 2, (14, 18)), ((7, 9), 0.5, (4, 4)), ((1, 3), 0.1, (1, 1))],
)
def test_output_size_follows_scale(size, scale, expected):
    assert output_size(size, scale) == expected
    for wrong in (0, -1, 8.1):
        with pytest.raises(ValueError, match="at most 8"):
            output_size(size, wrong)


def test_header_over_pixel_limit_raises(tmp_path):
    """Sides as cameras have them; refused by the header, in no time and no memory."""
    (tmp_path / "a.png").write_bytes(png_claiming(16_320, 12_241))
    with pytest.raises(ImageError, match="more than the limit of 199"):
        read_photo(tmp_path / "a.png", max_pixels=199_000_000)
