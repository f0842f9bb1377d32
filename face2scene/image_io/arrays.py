"""Images as arrays and tensors: float32 RGB in [0, 1], upright, in sRGB; their ranges, sizes and colour.

Files with transparency, profiles and metadata are read and written by `face2scene.image_io.photos`.
"""

import logging
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from face2scene.common.files import atomic_write
from face2scene.image_io.photos import LUMA, MAX_PIXELS, NEUTRAL, SUFFIXES, ImageError, quantize, read_photo

LOG = logging.getLogger(__name__)
COLOURS = ("none", "wavelet", "adain")


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image upright, in sRGB, transparency laid on white; see `photos.read_photo` for what files may hold.

    Returns:
        float32 (H, W, 3) in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ImageError: not an image, cut short, or more than `max_pixels` pixels.
    """
    return read_photo(path, max_pixels=max_pixels).on_white()


def write_png(path: str | Path, image: np.ndarray | Tensor) -> None:
    """Write [0, 1] RGB, (H, W, 3) or a (3, H, W) tensor, as an 8-bit PNG; whole or not at all."""
    with atomic_write(path) as partial:
        Image.fromarray(to_bytes(image)).save(partial, format="PNG", compress_level=3)


def to_bytes(image: np.ndarray | Tensor) -> np.ndarray:
    """[0, 1] image, array (H, W, 3) or tensor (3, H, W), to uint8 (H, W, 3), rounded to nearest."""
    if isinstance(image, Tensor):
        image = to_array(image)
    if not np.isfinite(image).all():
        raise ImageError("An image holds NaN or infinite values and cannot be written.")
    return quantize(image, 8)


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


STEP = 1.5 / 255  # in [0, 1], ours: between one step of 8 bits and two
BLACK = 2.5 / 255  # ours


def nothing_in(image: Tensor) -> str:
    """Why a (3, H, W) image shows nothing: `one colour all over` or `black`; an empty string where it shows something.

    Values of a channel may differ by one step of 8 bits, as dithering makes them.
    """
    if float((image.amax((-2, -1)) - image.amin((-2, -1))).max()) <= STEP:
        return "one colour all over"
    return "black" if float(image.max()) <= BLACK else ""


# Folders that file managers, network drives and notebooks leave among photos; hidden ones are ignored as well.
STRAY_FOLDERS = frozenset({"@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information"})
STRAY_FILES = frozenset({"thumbs.db", "desktop.ini"})
_LINKED = "links to folders are not followed"


def list_images(folder: str | Path) -> list[Path]:
    """Image files in `folder` and below it, by suffix, sorted by path; without those that `list_files` leaves out.

    Raises:
        FileNotFoundError: no such folder.
    """
    return [path for path in list_files(folder) if path.suffix.lower() in SUFFIXES]


def list_files(folder: str | Path) -> list[Path]:
    """All files below `folder`, sorted by path, without hidden ones, STRAY_FOLDERS and STRAY_FILES.

    A warning names each folder that cannot be opened, each link that leads to a folder or to nothing, and each pipe,
    socket or device.

    Raises:
        FileNotFoundError: no such folder.
    """
    files, unreadable = files_below(folder)
    for path, reason in unreadable.items():
        LOG.warning("%s cannot be opened (%s): what it holds is left out.", path, reason)
    return files


def files_below(folder: str | Path) -> tuple[list[Path], dict[Path, str]]:
    """The files of `list_files`, and what cannot be opened, each with the reason; without a warning."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder." if Path(folder).exists() else f"There is nothing at {folder}."
        )
    files: list[Path] = []
    errors: list[OSError] = []
    links: dict[Path, str] = {}
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if name[0] != "." and name.lower() not in STRAY_FOLDERS]
        kept = [name for name in names if name[0] != "." and name.lower() not in STRAY_FOLDERS | STRAY_FILES]
        links |= dict.fromkeys((path for name in folders if (path := Path(parent, name)).is_symlink()), _LINKED)
        for path in (Path(parent, name) for name in kept):
            if path.is_file():
                files.append(path)
            else:
                links[path] = "a pipe, socket or device" if path.exists() else "the link leads to nothing"
    ordered = sorted(files, key=lambda path: path.relative_to(folder).parts)  # on Windows paths compare without case
    return ordered, links | {Path(error.filename): error.strerror or str(error) for error in errors}


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad (B, 3, H, W) on the right and bottom to a multiple of `multiple`, mirrored where it can be.

    Returns:
        The padded image and the (H, W) to crop back to.
    """
    height, width = image.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return image, (height, width)
    mode = "reflect" if down < height and right < width else "replicate"  # reflection needs that many pixels
    return F.pad(image, (0, right, 0, down), mode=mode), (height, width)


def output_size(size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """(height, width) of the restoration of an upright image of `size`.

    `scale` multiplies both sides, rounded to the nearest pixel, half to even, at least 1; scale 1 keeps odd sides.

    Raises:
        ValueError: a scale of 0 or less, or above 8.
    """
    if not 0 < scale <= 8:
        raise ValueError(f"scale is {scale}: it must be above 0 and at most 8.")
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of (3, H, W) or (B, 3, H, W) in [0, 1] to (height, width), clamped to [0, 1]."""
    batch = image if image.dim() == 4 else image[None]
    batch = F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return batch if image.dim() == 4 else batch[0]


def resize_with_alpha(image: np.ndarray, alpha: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resize (H, W, 3) and its transparency (H, W), premultiplied, so that hidden colour does not reach the edges.

    Each direction is clamped to [0, 1], as Pillow does for RGBA.
    """
    opacity = to_tensor(alpha[..., None].repeat(3, 2))
    plain = to_tensor(image)
    plain, premultiplied, opacity = (
        resize(resize(one, (alpha.shape[0], size[1])), size) for one in (plain, plain * opacity, opacity)
    )
    divided = (premultiplied / opacity.clamp_min(1e-6)).clamp(0, 1)
    return to_array(torch.where(opacity >= 0.5 / 255, divided, plain)), opacity[0].numpy()


def align_colour(image: Tensor, reference: Tensor, method: str) -> Tensor:
    """Give `image` the colour of `reference`; both (B, 3, H, W) in [0, 1].

    Args:
        method: `none`; `adain` matches each channel's mean and spread; `wavelet` takes the low frequencies of
            `reference` and the high ones of `image` (five dyadic levels, as S3Diff and FaceMe do).
    """
    if method == "none":
        return image
    if method == "adain":
        mean, to_mean = (x.mean((-2, -1), keepdim=True) for x in (image, reference))
        spread = partial(torch.var, dim=(-2, -1), keepdim=True, correction=int(image[0, 0].numel() > 1))
        std, to_std = (spread(x).add(1e-5).sqrt() for x in (image, reference))  # S3Diff's 1e-5
        return ((image - mean) / std * to_std + to_mean).clamp(0, 1)
    if method == "wavelet":
        result = torch.empty_like(image)
        for top in range(0, image.shape[-2], _STRIP):  # in strips, for the memory of large images
            start, end = max(top - _REACH, 0), top + _STRIP + _REACH
            part, other = image[..., start:end, :], reference[..., start:end, :]
            aligned = (part + _low_frequencies(other - part)).clamp(0, 1)  # the filter is linear
            result[..., top : top + _STRIP, :] = aligned[..., top - start : top - start + _STRIP, :]
        return result
    raise ValueError(f"Unknown colour alignment {method!r}: choose none, wavelet or adain (option colour).")


def grey_where_grey(image: Tensor, reference: Tensor) -> Tensor:
    """The luma of `image` in all channels if `reference` is grey, else `image`; both (B, 3, H, W) in [0, 1]."""
    if float((reference.amax(1) - reference.amin(1)).max()) > NEUTRAL + 1e-6:
        return image
    return torch.einsum("bchw,c->bhw", image, torch.from_numpy(LUMA).to(image))[:, None].repeat(1, 3, 1, 1)


_STRIP = 1024  # rows
_REACH = 31  # rows that a pixel's low frequencies come from, up and down: 1 + 2 + 4 + 8 + 16


def _low_frequencies(image: Tensor) -> Tensor:
    # The a-trous wavelet: a 3 x 3 binomial kernel whose taps move apart by two at every level; along each axis in turn.
    for radius in (1, 2, 4, 8, 16):
        for axis, margins in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
            padded, length = F.pad(image, margins, mode="replicate"), image.shape[axis]
            before, centre, after = (padded.narrow(axis, start, length) for start in (0, radius, 2 * radius))
            image = centre.mul(0.5).add_(before, alpha=0.25).add_(after, alpha=0.25)
    return image
