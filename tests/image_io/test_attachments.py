"""Parts of a photo file beside its image: what is left out is named, and what turns the image is applied."""

import io
import re
import struct
import zlib

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from face2scene.image_io.attachments import left_out, turn_of_heif
from face2scene.image_io.photos import ImageError, Photo, read_photo, write_photo
from face2scene.image_io.raw import develop

Y, X = np.mgrid[0:64, 0:96] / (64, 96)[0]
COLOUR = np.stack([X / X.max(), Y, (X + Y) / (X + Y).max()], -1)
IMAGE = Image.fromarray((COLOUR * 255).round().astype(np.uint8))
pillow_heif.register_heif_opener()


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def read(tmp_path, name: str, content: bytes) -> Photo:
    (tmp_path / name).write_bytes(content)
    return read_photo(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_with_orientation_in_exif_alone(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(IMAGE, "HEIF", exif=exif, quality=95)
    assert b"irot" not in content and b"imir" not in content
    photo = read(tmp_path, "a.heic", content)
    png = Image.open(io.BytesIO(encoded(IMAGE, "PNG", exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(png)) / 255
    assert photo.image.shape == expected.shape
    np.testing.assert_allclose(photo.image, expected, atol=0.05)
    assert [("EXIF alone" in warning) for warning in photo.warnings] == [True] * (orientation > 1)


def test_containers_own_turn_is_not_repeated():
    image = Image.new("RGB", (4, 4))
    image.info["original_orientation"] = 6
    notes: list[str] = []
    assert turn_of_heif(image, b"....\0\0\0\x09irot\x03....", notes) == 1 and not notes


def test_ten_bits_of_a_heic_are_kept(tmp_path):
    deep = (COLOUR * 65535).round().astype(np.uint16)
    file, buffer = pillow_heif.from_bytes("RGB;16", (96, 64), deep.tobytes()), io.BytesIO()
    file.save(buffer, quality=100, chroma=444)
    photo = read(tmp_path, "a.heic", buffer.getvalue())
    assert photo.bits == 16 and len(np.unique(photo.image[..., 0])) > 256
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.02)


def test_further_images_of_a_heic_are_named(tmp_path):
    content = encoded(IMAGE, "HEIF", save_all=True, append_images=[ImageOps.mirror(IMAGE)], quality=95)
    photo = read(tmp_path, "a.heic", content)
    assert photo.warnings == ("1 further pages or frames are left out.",)
    np.testing.assert_allclose(photo.image, COLOUR, atol=0.05)  # the first of them is the primary one


def test_depth_and_other_maps_are_named():
    image = Image.new("RGB", (4, 4))
    image.info |= {
        "depth_images": [object()],
        "aux": {"urn:com:apple:photo:2020:aux:hdrgainmap": [3], "urn:matte": [4]},
    }
    image.info["nclx_profile"] = {"transfer_characteristics": 16}
    assert left_out(image, b"") == [
        "1 depth maps are left out.",
        "Auxiliary images are left out: urn:matte.",
        "HDR brightness (PQ) is read as if it were sRGB.",
    ]


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="A day"
hdrgm:Version="1.0" GCamera:MotionPhoto="1"><Container:Directory><rdf:Seq><rdf:li/></rdf:Seq></Container:Directory>
</rdf:Description></x:xmpmeta>"""


@pytest.mark.parametrize("container", ["mpf", "behind"])
def test_ultra_hdr_and_motion_photo_are_named(tmp_path, container):
    gain_map = IMAGE.convert("L").resize((24, 16))
    content = (
        encoded(IMAGE, "MPO", save_all=True, append_images=[gain_map], quality=95, xmp=XMP)
        if container == "mpf"
        else encoded(IMAGE, "JPEG", quality=95, xmp=XMP) + encoded(gain_map, "JPEG")
    )
    photo = read(tmp_path, "a.jpg", content + b"\0\0\0\x18ftypmp42\0\0\0\0isommp42")
    assert photo.warnings == ("The gain map for HDR displays is left out.", "The video of a motion photo is left out.")
    assert np.abs(photo.image - COLOUR).mean() < 0.02
    write_photo(tmp_path / "b.jpg", photo.image, like=photo)
    again = read_photo(tmp_path / "b.jpg")
    assert not again.warnings and b"A day" in again.metadata.xmp
    assert not re.search(rb"hdrgm:V|GCamera:M|Directory", again.metadata.xmp)


def test_heic_motion_photo_is_named(tmp_path):
    video = b"\0\0\0\x10ftypmp42\0\0\0\0"
    content = encoded(IMAGE, "HEIF", quality=95)
    photo = read(tmp_path, "a.heic", content + (8 + len(video)).to_bytes(4, "big") + b"mpvd" + video)
    assert photo.warnings == ("The video of a motion photo is left out.",)
    assert not read(tmp_path, "b.heic", content).warnings


def test_deep_avif_and_png_gamma_are_named(tmp_path):
    deep = imagecodecs.avif_encode((COLOUR * 1023).round().astype(np.uint16), bitspersample=10, level=95)
    assert read(tmp_path, "a.avif", deep).warnings == ("An AVIF of more than 8 bits is read at 8.",)
    assert not read(tmp_path, "b.avif", encoded(IMAGE, "AVIF")).warnings
    png = encoded(IMAGE, "PNG")
    for gamma, named in ((100000, True), (45455, False)):
        chunk = b"gAMA" + gamma.to_bytes(4, "big")
        content = png[:33] + b"\0\0\0\4" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[33:]
        assert ["gamma of 1 " in warning for warning in read(tmp_path, "a.png", content).warnings] == [True] * named


def test_hdr_of_png_and_avif_is_named(tmp_path):
    chunk = b"cICP\x01\x12\0\1"
    png = encoded(IMAGE, "PNG")
    content = png[:33] + b"\0\0\0\4" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[33:]
    assert read(tmp_path, "a.png", content).warnings == ("HDR brightness (HLG) is read as if it were sRGB.",)
    avif = encoded(IMAGE, "AVIF")
    stated = avif.index(b"colrnclx") + 8  # primaries, transfer characteristics, matrix
    content = avif[: stated + 2] + b"\0\x10" + avif[stated + 4 :]
    assert read(tmp_path, "a.avif", content).warnings == ("HDR brightness (PQ) is read as if it were sRGB.",)


@pytest.mark.parametrize("fmt", ["PNG", "AVIF", "HEIF"])
def test_stated_primaries_are_converted_or_named(tmp_path, fmt):
    """Display P3 without a profile, which later phones state by numbers (ITU-T H.273)."""
    levels = np.tile(np.array([200, 60, 90], np.uint8), (64, 64, 1))
    linear = np.array([200, 60, 90]) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_srgb = np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]])
    linear = (to_srgb @ linear).clip(0, 1)  # CSS Color 4, of both matrices
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for number in (12, 9):
        if fmt == "PNG":
            chunk, content = b"cICP" + bytes([number, 13, 0, 1]), encoded(Image.fromarray(levels), "PNG")
            content = content[:33] + b"\0\0\0\4" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
        elif fmt == "AVIF":
            content = imagecodecs.avif_encode(levels, level=95, primaries=number, transfer=13)
        else:
            content = encoded(Image.fromarray(levels), fmt, quality=95, color_primaries=number)
        photo = read(tmp_path, f"a.{fmt.lower()}", content)
        if number == 12:
            np.testing.assert_allclose(photo.image[8, 8] * 255, expected, atol=1.1 if fmt == "PNG" else 3)
            assert photo.profile is not None and photo.warnings == ()
        else:
            np.testing.assert_allclose(photo.image[8, 8] * 255, levels[8, 8], atol=3)
            assert "(number 9 of ITU-T H.273) are not applied" in photo.warnings[0]


def test_primaries_of_a_png_are_named(tmp_path):
    png, srgb = encoded(IMAGE, "PNG"), (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    for green, named in ((30000, False), (21000, True)):  # sRGB's and Adobe RGB's
        chunk = b"cHRM" + struct.pack(">8I", *srgb[:4], green, *srgb[5:])
        content = png[:33] + b"\0\0\0\x20" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[33:]
        assert ["primaries" in warning for warning in read(tmp_path, "a.png", content).warnings] == [True] * named


def test_xmp_in_further_segments_is_named(tmp_path):
    xmp = b'<x:xmpmeta xmpNote:HasExtendedXMP="0123" dc:title="A day"/>'
    jpeg = encoded(IMAGE, "JPEG", xmp=xmp)
    more = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + b"<x/>"
    photo = read(tmp_path, "a.jpg", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(more) + 2) + more + jpeg[2:])
    assert photo.warnings == ("What XMP keeps in further segments is left out.",)
    assert photo.metadata.xmp == b'<x:xmpmeta dc:title="A day"/>'


@pytest.mark.parametrize("comment", [b"f\xc3\xbcr dich", b"f\xfcr dich"])
def test_comment_of_old_programs_is_kept(tmp_path, comment):
    photo = read(tmp_path, "a.jpg", encoded(IMAGE, "JPEG", comment=comment))
    write_photo(tmp_path / "b.jpg", photo.image, like=photo)
    assert comment in (tmp_path / "b.jpg").read_bytes()
    write_photo(tmp_path / "b.png", photo.image, like=photo)
    with Image.open(tmp_path / "b.png") as written:
        assert written.text["Comment"] == "f\u00fcr dich"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "it is empty"),
        (bytes(99), "it begins with zeros"),
        (b"\xff\x0a\xfa", "it is JPEG XL, which"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "it is JPEG 2000"),
        (b"%PDF-1.7\n", "it is PDF"),
        (imagecodecs.jpeg_encode((COLOUR * 4095).astype(np.uint16), bitspersample=12), "a JPEG of 12 bits"),
        (b"hello", "it is damaged, or in a format that is not read"),
    ],
)
def test_what_is_no_photo_is_named(tmp_path, content, name):
    with pytest.raises(ImageError, match=name):
        read(tmp_path, "a.jpg", content)


def test_unusable_profiles_are_named(tmp_path):
    photo = read(tmp_path, "a.png", encoded(IMAGE, "PNG", icc_profile=b"nonsense"))
    assert photo.profile is None and "cannot be used" in photo.warnings[0]
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert "cannot be used" in read(tmp_path, "b.jpg", encoded(IMAGE, "JPEG", icc_profile=lab)).warnings[0]
    assert "plain formula" in read(tmp_path, "c.jpg", encoded(IMAGE.convert("CMYK"), "JPEG")).warnings[0]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_jpeg_that_ends_early_is_refused(tmp_path, options):
    """With an end marker behind the cut, decoders fill the rest without a word."""
    grey = IMAGE.copy()
    grey.paste((128, 128, 128), (0, 40, 96, 64))
    for image in (IMAGE, grey, grey.convert("L")):
        jpeg = encoded(image, "JPEG", **options)
        assert read(tmp_path, "a.jpg", jpeg).image.shape == (64, 96, 3)
        for kept in (0.7, 0.9):
            with pytest.raises(ImageError, match=r"cut short|cannot be read as"):  # or cut within a table
                read(tmp_path, "a.jpg", jpeg[: int(len(jpeg) * kept)] + b"\xff\xd9" + jpeg)


def test_losses_of_a_format_are_named(tmp_path, caplog):
    photo = Photo(COLOUR.astype(np.float32), np.full(COLOUR.shape[:2], 0.5, np.float32), bits=16)
    sentence = "Left out, because a JPEG does not hold it: transparency, 16 bits a channel."
    assert write_photo(tmp_path / "a.jpg", photo.image, like=photo) == [sentence]
    assert sentence in caplog.text
    assert write_photo(tmp_path / "a.png", photo.image, like=photo) == []


def test_dng_is_developed_whatever_its_suffix(tmp_path):
    raw = (COLOUR[..., 0] * 60000).astype(np.uint16)
    tags = [(50706, "B", 4, bytes([1, 4, 0, 0]), True), (33421, "H", 2, (2, 2), True)]
    tags.append((33422, "B", 4, bytes([0, 1, 1, 2]), True))
    for name in ("a.dng", "a.tif", "a.jpg"):
        tifffile.imwrite(tmp_path / name, raw, photometric=32803, extratags=tags, metadata=None)
    expected = develop(tmp_path / "a.dng").image
    for name in ("a.tif", "a.jpg"):
        np.testing.assert_array_equal(read_photo(tmp_path / name).image, expected)
