"""Pictures in and out: files of every kind become float32 RGB in [0, 1], and go back without loss.

The range, the colour order and the orientation are settled here, once, for the whole package.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from torch.nn import functional as F

from face2scene.files import atomic_write

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 200_000_000  # our setting: a larger file is more often a bomb than a photo


class ImageError(ValueError):
    """A file that cannot be used as a picture; the message names the file and the reason."""


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture upright, in sRGB.

    EXIF orientation is applied, an embedded ICC profile is converted to sRGB, grey becomes three equal channels,
    16 bit keeps its depth, and transparency is laid on white.

    Returns:
        float32 (H, W, 3) in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ImageError: not a picture, cut short, or more than `max_pixels` pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no picture at {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides below
            with Image.open(path) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageError(
                        f"{path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million."
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _to_float_rgb(_to_srgb(upright))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large to open safely ({error}).") from error
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        raise ImageError(f"{path} cannot be read as a picture ({type(error).__name__}: {error}).") from error


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    try:
        converted = ImageCms.profileToProfile(
            image.convert("RGB") if alpha else image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError):
        return image  # a broken profile is treated like a missing one, as browsers do
    if alpha:
        converted.putalpha(alpha)
    return converted


def _to_float_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)
        top = 1.0 if image.mode == "F" and grey.max() <= 1 else 65535.0
        return np.repeat((grey / top).clip(0, 1)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
        return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def write_png(path: str | Path, image: np.ndarray | Tensor) -> None:
    """Write [0, 1] RGB, (H, W, 3) or a (3, H, W) tensor, as an 8-bit PNG; whole or not at all."""
    with atomic_write(path) as partial:
        Image.fromarray(to_bytes(image)).save(partial, format="PNG", compress_level=3)


def to_bytes(image: np.ndarray | Tensor) -> np.ndarray:
    """[0, 1] picture, array (H, W, 3) or tensor (3, H, W), to uint8 (H, W, 3), rounded to nearest."""
    if isinstance(image, Tensor):
        image = to_array(image)
    if not np.isfinite(image).all():
        raise ImageError("A picture holds NaN or infinite values and cannot be written.")
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def to_tensor(image: np.ndarray) -> Tensor:
    """Array (H, W, 3), float [0, 1] or uint8, to a float32 tensor (3, H, W) in [0, 1]."""
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))


def to_array(image: Tensor) -> np.ndarray:
    """Tensor (3, H, W) to a float32 array (H, W, 3), same values."""
    return image.detach().float().cpu().permute(1, 2, 0).contiguous().numpy()


def read_tensor(path: str | Path) -> Tensor:
    """`read_image` as a tensor (3, H, W)."""
    return to_tensor(read_image(path))


def list_images(folder: str | Path) -> list[Path]:
    """Picture files directly in `folder` or below it, by suffix, sorted by path; hidden ones are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    return sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad (B, 3, H, W) on the right and bottom to a multiple of `multiple`, mirrored where it can be.

    Returns:
        The padded picture and the (H, W) to crop back to.
    """
    height, width = image.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return image, (height, width)
    mode = "reflect" if down < height and right < width else "replicate"  # reflection needs that many pixels
    return F.pad(image, (0, right, 0, down), mode=mode), (height, width)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of (3, H, W) or (B, 3, H, W) in [0, 1] to (height, width), clamped to [0, 1]."""
    batch = image if image.dim() == 4 else image[None]
    batch = F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return batch if image.dim() == 4 else batch[0]


def align_colour(image: Tensor, reference: Tensor, method: str) -> Tensor:
    """Give `image` the colour of `reference`; both (B, 3, H, W) in [0, 1].

    Args:
        method: `none`; `adain` matches each channel's mean and spread; `wavelet` takes the low frequencies of
            `reference` and the high ones of `image` (five dyadic levels, as S3Diff and FaceMe do).
    """
    if method == "none":
        return image
    if method == "adain":
        mean, std = image.mean((-2, -1), keepdim=True), image.std((-2, -1), keepdim=True).clamp_min(1e-5)
        to_mean, to_std = reference.mean((-2, -1), keepdim=True), reference.std((-2, -1), keepdim=True)
        return ((image - mean) / std * to_std + to_mean).clamp(0, 1)
    if method == "wavelet":
        return (image - _low_frequencies(image) + _low_frequencies(reference)).clamp(0, 1)
    raise ValueError(f"Unknown colour alignment {method!r}: choose none, wavelet or adain (option colour).")


def _low_frequencies(image: Tensor, levels: int = 5) -> Tensor:
    # The a-trous wavelet: a 3 x 3 binomial kernel whose taps move apart by two at every level.
    row = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    kernel = torch.outer(row, row).expand(3, 1, 3, 3)
    for level in range(levels):
        radius = 2**level
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, groups=3, dilation=radius)
    return image
