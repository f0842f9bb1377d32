"""Folders of predictions and their ground truth: paired by name, and checked before any model is loaded.

Images that cannot be compared are refused by name; missing ones are named and make a row incomplete.
"""

import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from face2scene.common.files import read_json
from face2scene.common.types import Box
from face2scene.data.records import METADATA, read_manifest
from face2scene.eval.scoring.regions import Region
from face2scene.image_io.arrays import ImageError, list_images
from face2scene.image_io.metadata import OPENED

log = logging.getLogger(__name__)
SHIFT = 0.5  # pixels from which a shift is reported
MIN_SHIFT_SIDE = 48  # pixels; a smaller image has too few low frequencies for its shift to be estimated
_MAX_SHIFT_SIDE = 512  # pixels to which a larger image is reduced before its shift is estimated
_CUTOFF = 0.15  # cycles per pixel, ours: what restoration adds or removes is above it
_MIN_PEAK = 0.1  # share of the ideal peak that a correlation needs, ours
_NOISE = 7.5  # share that it needs too, in units of one independent low frequency; unrelated images stay below it
_HANN = 2.25  # frequencies that one independent value is spread over by the window, in two directions
_MAX_ERROR = 0.1  # pixels of standard error up to which a shift is told; errors of blurred pairs were 7 times theirs
_SAME_SCENE = 0.6  # correlation of thumbnails above which two images without a peak show one scene
UNCERTAIN = (math.inf, math.inf)  # a shift that cannot be told: one of the images is too blurred


class ScoreError(ValueError):
    """Folders that cannot be compared as they are; the message names the images."""


@dataclass
class ScoreRow:
    """One folder of predictions, its checks and its scores so far."""

    title: str
    folder: Path
    out: Path
    paths: dict[str, Path]
    extra: list[str]  # predictions without a ground truth
    missing: list[str] = field(default_factory=list)
    flagged: dict[str, str] = field(default_factory=dict)  # images that show nothing or have no number, with the reason
    undefined: dict[str, dict[str, str]] = field(default_factory=dict)  # metric -> image -> why it has no value
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    shifts: dict[str, tuple[float, float]] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)  # of `fid`: ours/NAME and truth/NAME
    hashes: dict[str, tuple[str, str]] = field(default_factory=dict)  # of the prediction and of its ground truth
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # (H, W) of the ground truths
    region: Region = "whole"
    boxes: Mapping[str, Box] = field(default_factory=dict)
    unsaved: int = 0

    def of_region(self, region: Region, boxes: Mapping[str, Box], sizes: Mapping[str, tuple[int, int]]) -> "ScoreRow":
        """The same folder without values, for a region whose results go to a folder of its name."""
        out = self.out if region == "whole" else self.out / region
        about = {"hashes": self.hashes, "sizes": sizes, "region": region, "boxes": boxes}
        return ScoreRow(self.title, self.folder, out, self.paths, self.extra, self.missing, **about)

    def expect(self, names: Sequence[str]) -> None:
        """Put the images in the order of `names`, and log those that are missing."""
        self.paths = {name: self.paths[name] for name in names if name in self.paths}
        self.missing = [name for name in names if name not in self.paths]
        if self.missing:
            log.warning("%s: incomplete, %d images are missing: %s", self.title, len(self.missing), some(self.missing))

    def counts(self, expected: int) -> dict[str, int]:
        return {
            "expected": expected,
            "scored": len(self.paths) - len(self.flagged),
            "missing": len(self.missing),
            "flagged": len(self.flagged),
            "without_truth": len(self.extra),
        }


def named_gt(gt: str | Path | Mapping[str, Path]) -> dict[str, Path]:
    """name -> file of a folder, or of a mapping whose files are checked; raises ScoreError."""
    if isinstance(gt, Mapping):
        found = {str(name): Path(path) for name, path in gt.items()}
        absent = [str(path) for path in found.values() if not path.is_file()]
        if absent:
            raise ScoreError(f"The ground truth lacks {len(absent)} files: {some(absent)}.")
    else:
        found = _by_name(list_images(gt), f"ground truth {gt}")
    if not found:
        raise ScoreError(f"There are no images in {gt} to compare with (option gt).")
    return found


def gt_of(folder: str | Path, split: str = "val") -> str | Path | dict[str, Path]:
    """The ground truth in `folder`: an InScene folder's images of `split` by name, any other folder as it is."""
    if not (Path(folder) / METADATA).is_file():
        return folder
    return {Path(record.image).stem: Path(folder) / record.image for record in read_manifest(folder, split=split)}


def boxes_of(folder: str | Path, split: str = "val", file: str | Path | None = None) -> dict[str, Box]:
    """Face boxes (x0, y0, x1, y1 in pixels) by name: of an InScene folder, or of a JSON file that maps name to box.

    Raises:
        ScoreError: the file is not such a map.
    """
    if file is None:
        if not (Path(folder) / METADATA).is_file():
            return {}
        return {Path(record.image).stem: record.face_box for record in read_manifest(folder, split=split)}
    try:
        return {str(name): tuple(float(v) for v in np.array(box).reshape(4)) for name, box in read_json(file).items()}
    except (ValueError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ScoreError(f'{file} does not map names to boxes, {{"NAME": [x0, y0, x1, y1]}} ({error}).') from error


def open_row(title: str, folder: Path, out: Path, gts: Mapping[str, Path]) -> ScoreRow:
    """A folder of PNGs, or with `images/` of them, beside its ground truth where there is one; raises ScoreError."""
    folder = folder / "images" if (folder / "images").is_dir() else folder
    if not folder.is_dir():
        raise ScoreError(f"{title}: there is no folder {folder} (option predictions).")
    images = list_images(folder)
    other = [path.name for path in images if path.suffix.lower() != ".png"]
    if other:
        raise ScoreError(f"{title}: only PNG is scored, since lossy files change the numbers; found {some(other)}.")
    found = _by_name(images, title)
    if not found:
        raise ScoreError(f"{title}: there is no PNG in {folder} (option predictions).")
    if not gts:
        return ScoreRow(title, folder, out, found, [])
    paths = {name: found[name] for name in gts if name in found}
    if not paths:
        raise ScoreError(
            f"{title}: no PNG in {folder} has the name of a ground truth. Predictions: {some(found)}; "
            f"ground truth: {some(gts)}."
        )
    row = ScoreRow(title, folder, out, paths, [n for n in found if n not in gts])
    if row.extra:
        log.warning(
            "%s: incomplete, %d images have no ground truth, so two sets are mixed (options gt, split): %s",
            *(title, len(row.extra), some(row.extra)),
        )
    return row


def checked_sizes(rows: Collection[ScoreRow], gts: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """(H, W) of every ground truth in use; without any, of the first row's images.

    Raises:
        ScoreError: a prediction of another size than its ground truth or the first row's, or that is no PNG; an image
            in another colour mode than RGB.
        ImageError: a file that cannot be read.
    """
    first: dict[str, Path] = {}
    for row in rows:
        first = row.paths | first
    headers = {name: image_header(gts.get(name, path)) for name, path in first.items()}
    sizes = {name: header.size for name, header in headers.items()}
    against = "ground truth" if gts else "the first row's"
    made = [(name, f"{row.title}/{path.name}", image_header(path)) for row in rows for name, path in row.paths.items()]
    formats = [f"{file} is a {header.format} file" for _, file, header in made if header.format != "PNG"]
    wrong = [
        "{} is {} x {}, {} {} x {}".format(file, *reversed(header.size), against, *reversed(sizes[name]))
        for name, file, header in made
        if header.size != sizes[name]
    ]
    read = [(file, header) for _, file, header in made]
    read += [(f"ground truth {gts[name].name}", header) for name, header in headers.items() if gts]
    modes = [f"{file} is {header.mode}" for file, header in read if header.mode != "RGB"]
    if formats:
        raise ScoreError(
            f"{len(formats)} images are no PNG but by name, and lossy files change the numbers: {some(formats)}. "
            "Write them as PNG from the start."
        )
    if wrong:
        raise ScoreError(f"{len(wrong)} images have another size than what they are compared with: {some(wrong)}.")
    if modes:
        raise ScoreError(
            f"{len(modes)} images are no 8-bit RGB, and what a reader makes of them would change the numbers: "
            f"{some(modes)}. Write them as RGB."
        )
    return sizes


def warn_of_copies(row: ScoreRow) -> dict[str, list[str]]:
    """Images of one row with the same bytes under several names, by the first name; logged."""
    by_hash: dict[str, list[str]] = {}
    for name in row.paths:
        by_hash.setdefault(row.hashes[name][0], []).append(name)
    copies = {names[0]: names[1:] for names in by_hash.values() if len(names) > 1}
    if copies:
        listed = some(f"{first} = {', '.join(rest)}" for first, rest in copies.items())
        log.warning("%s: the same image under several names: %s", row.title, listed)
    return copies


def global_shift(image: Tensor, gt: Tensor) -> tuple[float, float] | None:
    """The shift (right, down) in pixels of an image against its ground truth; None where they are too unlike.

    Phase correlation of low frequencies under a Hann window (Kuglin and Hines 1975), the peak read to a fraction of a
    pixel from the three values around it. `UNCERTAIN` where it is above half a pixel and the phases that remain leave a
    standard error above a tenth, as a strong blur does, or where there is no peak and the thumbnails show one scene.

    Args:
        image, gt: (3, H, W) in [0, 1], one size.
    """
    if min(gt.shape[-2:]) < MIN_SHIFT_SIDE:
        return None
    factor = max(1, min(gt.shape[-2:]) // _MAX_SHIFT_SIDE)
    sides = [side.float().mean(0, keepdim=True) for side in (image, gt)]
    if factor > 1:
        sides = [torch.nn.functional.avg_pool2d(side, factor) for side in sides]
    height, width = sides[0].shape[-2:]
    window = torch.outer(*(torch.hann_window(n, periodic=False) for n in (height, width))).to(sides[0].device)
    spectra = [torch.fft.rfft2((side[0] - side.mean()) * window) for side in sides]
    product = spectra[0] * spectra[1].conj()
    phases = product / product.abs().clamp_min(1e-12)
    frequencies = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    rows, columns = (f.to(product.device) for f in frequencies)
    weight = torch.exp(-(rows**2 + columns**2) / _CUTOFF**2)
    peak = torch.fft.irfft2(phases * weight, s=(height, width))
    ideal = torch.fft.irfft2(weight.to(product.dtype), s=(height, width))[0, 0]
    place = int(peak.argmax())
    y, x = divmod(place, width)
    independent = 2 * math.pi * _CUTOFF**2 * height * width
    if not peak[y, x] > max(_MIN_PEAK, _NOISE / math.sqrt(independent)) * ideal:
        thumbnails = [torch.nn.functional.adaptive_avg_pool2d(side, 8).flatten() for side in sides]
        return UNCERTAIN if torch.corrcoef(torch.stack(thumbnails))[0, 1] > _SAME_SCENE else None
    down = y + _between(*(peak[(y + d) % height, x] for d in (-1, 0, 1)))
    right = x + _between(*(peak[y, (x + d) % width] for d in (-1, 0, 1)))
    remaining = phases.angle() + 2 * math.pi * (rows * down + columns * right)
    wrapped = [value - size if value > size / 2 else value for value, size in ((right, width), (down, height))]
    found = wrapped[0] * factor, wrapped[1] * factor
    if math.hypot(*found) <= SHIFT:
        return found
    return UNCERTAIN if factor * _standard_error(remaining.cpu(), weight.cpu(), frequencies) > _MAX_ERROR else found


def _standard_error(remaining: Tensor, weight: Tensor, frequencies: tuple[Tensor, Tensor]) -> float:
    """Of a peak's place in pixels, along its worse direction, from the phases that its shift leaves.

    The peak is where the sum of weight x frequency x sin(phase) vanishes, so its covariance is that of an estimating
    equation, from the slope and the spread of these terms.
    """
    k = 2 * math.pi * torch.stack([f.expand_as(weight) for f in frequencies]).double()
    slope = torch.einsum("hw,ahw,bhw->ab", weight * torch.cos(remaining), k, k)
    spread = _HANN * torch.einsum("hw,ahw,bhw->ab", (weight * torch.sin(remaining)) ** 2, k, k)
    if torch.linalg.eigvalsh(slope)[0] <= 0:
        return math.inf
    inverse = torch.linalg.inv(slope)
    return float(torch.linalg.eigvalsh(inverse @ spread @ inverse)[-1].clamp_min(0).sqrt())


def _between(before: Tensor, at: Tensor, after: Tensor) -> float:
    """Where the peak of a Gaussian lies, -0.5 to 0.5, from three of its values."""
    a, b, c = (float(value.clamp_min(1e-12).log()) for value in (before, at, after))
    return 0.0 if a + c >= 2 * b else max(-0.5, min(0.5, (a - c) / (2 * (a - 2 * b + c))))


def _by_name(paths: Iterable[Path], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    twice = []
    for path in paths:
        if path.stem in found:
            twice.append(" and ".join(f"{p.parent.name}/{p.name}" for p in (found[path.stem], path)))
        found[path.stem] = path
    if twice:
        raise ScoreError(f"{what}: two images have one name ({some(twice)}). Names must be unique to be paired.")
    return found


@dataclass(frozen=True)
class ImageHeader:
    """Of an image file, read without its pixels."""

    size: tuple[int, int]  # (H, W), upright
    mode: str
    format: str  # of the content, whatever the file is called


def image_header(path: Path) -> ImageHeader:
    """Raises ImageError where the file cannot be read as an image."""
    try:
        with Image.open(path, formats=OPENED) as image:
            width, height = image.size
            upright = image.getexif().get(0x0112, 1) < 5
            # Pillow opens 16 bits a channel as RGB, so the depth is read from the PNG's own header.
            deep = image.format == "PNG" and _depth(path) > 8
            size, mode = (height, width) if upright else (width, height), image.mode
            return ImageHeader(size, f"{mode} of 16 bit" if deep else mode, str(image.format))
    except Exception as error:
        raise ImageError(f"{path} cannot be read as an image ({type(error).__name__}: {error}).") from error


def _depth(path: Path) -> int:
    with open(path, "rb") as file:
        return file.read(25)[24]


def some(names: Iterable[object]) -> str:
    """The first six, and the number of the others."""
    names = [str(name) for name in names]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
