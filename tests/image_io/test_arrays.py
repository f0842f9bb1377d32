import io

import numpy as np
import pytest
import torch
from image_measures import detail
from PIL import Image, ImageCms

from face2scene.common.files import atomic_write
from face2scene.image_io.arrays import (
    ImageError,
    align_colour,
    list_images,
    pad_to_multiple,
    read_image,
    read_tensor,
    resize,
    to_array,
    to_tensor,
    write_png,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_coloured_image(left=RED, right=BLUE, size=(4, 2)) -> Image.Image:
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def test_png_round_trip_within_rounding(tmp_path):
    image = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    write_png(tmp_path / "a.png", image)
    assert np.abs(read_image(tmp_path / "a.png") - image).max() <= 0.5 / 255 + 1e-6
    torch.testing.assert_close(read_tensor(tmp_path / "a.png"), to_tensor(read_image(tmp_path / "a.png")))


def test_tensor_array_round_trip():
    image = np.random.default_rng(0).random((3, 4, 3), dtype=np.float32)
    assert np.array_equal(to_array(to_tensor(image)), image)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: show it rotated by 90 degrees clockwise
    two_coloured_image().save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (4, 2, 3)
    assert image[0, 0].tolist() == [1, 0, 0] and image[-1, 0].tolist() == [0, 0, 1]


def test_icc_profile_is_converted_to_srgb(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ").replace(b"tmp ", b"bXYZ")
    two_coloured_image().save(tmp_path / "swapped.png", icc_profile=swapped)  # its red is what sRGB calls blue
    np.testing.assert_allclose(read_image(tmp_path / "swapped.png")[0, 0], [0, 0, 1], atol=0.02)
    two_coloured_image().save(tmp_path / "broken.png", icc_profile=b"not a profile")
    assert read_image(tmp_path / "broken.png")[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, [0.2, 0.2, 0.2]),
        ("1", 1, [1, 1, 1]),
        ("RGBA", (255, 0, 0, 0), [1, 1, 1]),  # clear: the white below shows
        ("LA", (0, 255), [0, 0, 0]),
        ("I;16", 13107, [0.2, 0.2, 0.2]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (3, 2), colour).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, 0], expected, atol=1e-5)


def test_unreadable_files_raise(tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(ImageError, match=r"notes\.png cannot be read as an image"):
        read_image(tmp_path / "notes.png")
    buffer = io.BytesIO()
    two_coloured_image(size=(64, 64)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:300])
    with pytest.raises(ImageError, match=r"cut\.jpg cannot be read"):
        read_image(tmp_path / "cut.jpg")
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_image(tmp_path / "missing.png")


def test_pixel_limit_is_enforced(tmp_path):
    two_coloured_image(size=(100, 100)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"100 x 100 pixels, more than the limit of 0\.005 million"):
        read_image(tmp_path / "a.png", max_pixels=5000)


def test_nan_image_is_not_written(tmp_path):
    with pytest.raises(ImageError, match="NaN"):
        write_png(tmp_path / "a.png", np.full((2, 2, 3), np.nan, dtype=np.float32))
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_listing_is_sorted_and_skips_hidden(tmp_path):
    for name in ("b.PNG", "a/c.jpg", ".hidden.png", "text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["c.jpg", "b.PNG"]


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (1, 3)])
def test_padding_keeps_image_in_corner(size):
    image = torch.rand(1, 3, *size)
    padded, (height, width) = pad_to_multiple(image, 8)
    assert all(side % 8 == 0 for side in padded.shape[-2:])
    torch.testing.assert_close(padded[..., :height, :width], image)


def test_resize_keeps_constant_image():
    torch.testing.assert_close(resize(torch.full((3, 9, 9), 0.3), (4, 17)), torch.full((3, 4, 17), 0.3))


@pytest.mark.numerics
@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_colour_alignment_removes_cast(method):
    torch.manual_seed(0)
    reference = torch.rand(1, 3, 64, 64) * 0.5 + 0.2
    cast = reference + torch.tensor([0.1, -0.1, 0.05]).view(1, 3, 1, 1)
    aligned = align_colour(cast, reference, method)
    torch.testing.assert_close(aligned, reference, atol=2e-3, rtol=0)


@pytest.mark.numerics
def test_alignment_in_strips_matches_whole(monkeypatch):
    image, reference = torch.rand(2, 1, 3, 150, 9)
    whole = align_colour(image, reference, "wavelet")
    monkeypatch.setattr("face2scene.image_io.arrays._STRIP", 40)
    torch.testing.assert_close(align_colour(image, reference, "wavelet"), whole)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_colour_alignment_keeps_sharpness(photo, method):
    """The reference is the blurred input: its colours come over, its blur does not."""
    sharp = torch.from_numpy(photo[100:228, 150:278].copy()).permute(2, 0, 1)[None]
    blurred = torch.nn.functional.avg_pool2d(sharp, 9, stride=1, padding=4, count_include_pad=False)
    cast = (sharp * torch.tensor([0.8, 0.9, 0.7]).view(1, 3, 1, 1) + 0.1).clamp(0, 1)
    aligned = align_colour(cast, blurred, method)
    assert (aligned.mean((-2, -1)) - sharp.mean((-2, -1))).abs().max() < 0.01  # of a cast of up to 0.1

    assert detail(aligned) > 0.75 * detail(sharp) and detail(blurred) < 0.5 * detail(sharp)


def test_unknown_colour_alignment_raises():
    with pytest.raises(ValueError, match="none, wavelet or adain"):
        align_colour(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), "histogram")


def test_adain_takes_one_pixel():
    image, reference = torch.full((1, 3, 1, 1), 0.3), torch.full((1, 3, 1, 1), 0.7)
    torch.testing.assert_close(align_colour(image, reference, "adain"), reference)
