"""What the two faces of a pair themselves hold of a degradation, for `FactorHeads` (ours).

The encoder's first stride and its means over places average away the highest frequencies, the grid of JPEG's blocks and
the period that an enlarging leaves behind. A resize and a blur are told apart by them or not at all.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 32  # pixels: sides of the windows whose spectra are averaged, with a step of half of it (Welch 1967)
GROUPS = 2 * (PATCH // 2 + 1) + PATCH // 2  # of frequencies: rings, along rows, along columns
PERIODS = 32  # groups of frequencies in which the period of an enlarging is looked for
SLOWEST = 0.18  # cycles per pixel, of the first of them; an enlarging from a share s has s, above one half 1 - s
LONGEST = 512  # pixels, of a face whose period is looked for
PAIR_STATISTICS = 7 * GROUPS + 2 * 2 * 8 + 4 + 2 * PERIODS + 1


@torch.no_grad()
def pair_statistics(restored: Tensor, degraded: Tensor) -> Tensor:
    """(B, PAIR_STATISTICS) float32 of pairs; powers are logarithms, white noise of one grey level has the power one.

    In this order, by groups of frequencies: power of the restored and the degraded luminance, of their difference and
    of the difference's red less blue; what is left of the restored luminance in the degraded one (the blur's and the
    resize's response, as a logarithm and plain), and the power that does not come from it (noise). Then the unevenness
    of 8-pixel blocks, the finest detail, and the period of an enlarging.

    Args:
        restored, degraded: as for `FaDeX`.
    """
    both = torch.stack([restored, degraded]).float() * 255
    grey = torch.einsum("nbchw,c->nbhw", both, both.new_tensor([0.299, 0.587, 0.114]))
    change = both[1] - both[0]
    images = torch.stack([grey[0], grey[1], grey[1] - grey[0], change[:, 0] - change[:, 2]], 1)  # (B, 4, H, W)
    even = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).diff(dim=-1)
    finest = even.squeeze(-1).unflatten(-2, (-1, 2)).diff(dim=-2).flatten(2).abs().median(-1).values
    blocks = [_blocks(image) for image in (grey[1], images[:, 2])]
    return torch.cat([_spectra(images), *blocks, (finest / 2 + 0.05).log(), _period(grey[1])], 1)


def _spectra(images: Tensor) -> Tensor:
    """(B, 7 x GROUPS) of the four images of `pair_statistics`, (B, 4, H, W)."""
    short = [max(PATCH - side, 0) for side in images.shape[-2:]]
    padding = [short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2]
    patches = F.pad(images, padding, mode="reflect") if any(short) else images
    patches = patches.unfold(2, PATCH, PATCH // 2).unfold(3, PATCH, PATCH // 2)
    window = torch.hann_window(PATCH, periodic=False, device=images.device)
    window = torch.outer(window, window) / window.square().sum()  # of one dimension, whose square is that of both
    found = torch.fft.rfft2((patches - patches.mean((-2, -1), keepdim=True)) * window)  # (B, 4, rows, columns, f, f)
    power = _grouped(found.abs().square().mean((2, 3)))
    common = _grouped((found[:, 0] * found[:, 1].conj()).real.mean((1, 2)))
    source = power[:, 0] + 1e-2
    response = common / source
    other = (power[:, 1] - common.square() / source).clamp_min(0)
    rows = [(power + 1e-2).log().flatten(1), response.clamp(0.01, 4).log(), response.clamp(-0.5, 2)]
    return torch.cat([*rows, (other + 1e-2).log()], 1)


def _grouped(power: Tensor) -> Tensor:
    """Means of (..., PATCH, PATCH / 2 + 1) over rings, along rows and along columns: (..., GROUPS)."""
    across = torch.arange(PATCH // 2 + 1, device=power.device)
    down = torch.fft.fftfreq(PATCH, 1 / PATCH, device=power.device).abs()
    ring = torch.hypot(down[:, None], across[None].float()).round().clamp(max=PATCH // 2).long().flatten()
    sums = power.new_zeros(*power.shape[:-2], PATCH // 2 + 1).index_add_(-1, ring, power.flatten(-2))
    along = [power[..., (0, 1, -1), :].mean(-2), power[..., : PATCH // 2, :2].mean(-1)]
    return torch.cat([sums / ring.bincount(), *along], -1)


def _blocks(image: Tensor) -> Tensor:
    """Mean steps of (B, H, W) at each of eight places along rows and columns, in order of size, over their mean."""
    found = []
    for turned in (image, image.mT):
        steps = turned.diff(dim=-1).abs()
        steps = steps[..., : steps.shape[-1] // 8 * 8].unflatten(-1, (-1, 8)).mean((1, 2))
        found.append((steps / steps.mean(1, keepdim=True).clamp_min(1e-3)).sort(dim=1).values)
    return torch.cat(found, 1)


def _period(image: Tensor) -> Tensor:
    """(B, 2 x PERIODS + 1): how the second differences of (B, H, W) vary with a period, and what they vary without.

    Interpolated pixels differ less from their neighbours than those that are kept (Gallagher 2005).
    """
    power = image.new_zeros(len(image), LONGEST // 2 + 1)
    for turned in (image, image.mT):
        start = max(turned.shape[-1] - LONGEST, 0) // 2
        curve = turned[..., start : start + LONGEST].diff(n=2, dim=-1).abs().clamp(max=24).mean(1)
        around = F.avg_pool1d(F.pad(curve[:, None], (4, 4), mode="reflect"), 9, 1)[:, 0]
        uneven = curve / (around + 0.05)
        window = torch.hann_window(curve.shape[-1], periodic=False, device=image.device)
        found = torch.fft.rfft((uneven - uneven.mean(-1, keepdim=True)) * window, n=LONGEST)
        power += found.abs().square() / window.square().sum()
    frequency = torch.arange(power.shape[1], device=image.device) / LONGEST
    group = ((frequency - SLOWEST) / (0.5 - SLOWEST) * PERIODS).floor().long()
    power, group = power[:, group >= 0], group[group >= 0].clamp(max=PERIODS - 1).expand(len(image), -1)
    highest = power.new_zeros(len(power), PERIODS).scatter_reduce_(1, group, power, "amax")
    level = power.median(1, keepdim=True).values
    against = (highest / (level + 1e-6)).clamp(0.1, 1e3).log()
    return torch.cat([against, (highest + 1e-4).log(), (level + 1e-4).log()], 1)
