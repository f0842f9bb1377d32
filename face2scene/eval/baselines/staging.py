"""Inputs of external programs as they need them, and their outputs checked.

input --(padded; reduced for programs of x4 only; resized for programs of faces only)--> staged PNG
output --(cropped; size checked; not of one colour)--> prediction with the input's name
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from face2scene.eval.baselines.adapter import Adapter, stems
from face2scene.eval.scoring.pairing import image_header
from face2scene.image_io.arrays import nothing_in, pad_to_multiple, read_tensor, resize
from face2scene.inference.tasks import RestorationTask
from face2scene.ref_fr.external_programs import read_result, stage_input

FACE = 512  # side of an aligned face, as all these methods were trained
SHRINK = "antialiased bicubic (torch), to a quarter"


class StagingError(ValueError):
    """Images that do not fit a method or its size mode."""


@dataclass(frozen=True)
class Staged:
    """One image as it is staged for a program, and the sizes of its result.

    Args:
        name: its place in the input folder, without the suffix; the prediction has the same among the predictions.
        stem: its name among the staged images.
        size: (H, W) staged.
        expected: (H, W) that the program's result must have.
        kept: (H, W) of the part of the result that is kept; the rest is padding.
        target: (H, W) of the prediction.
    """

    name: str
    stem: str
    path: Path
    size: tuple[int, int]
    expected: tuple[int, int]
    kept: tuple[int, int]
    target: tuple[int, int]
    references: tuple[Path, ...] = ()


def scale_of(tasks: Sequence[RestorationTask], gts: Mapping[str, Path] | None, scale: int | None) -> int:
    """The factor from input to prediction, 1 or 4: `scale`, else that of the ground truth, else 1.

    Raises:
        StagingError: the sizes have another factor, or several.
    """
    found = set()
    for task in tasks:
        gt = (gts or {}).get(task.path.stem) or task.gt
        if gt is not None:
            (high, wide), (height, width) = image_header(gt).size, image_header(task.path).size
            found.add((high / height, wide / width))
    if scale is None and not found:
        return 1
    factors = {factor for pair in found for factor in pair}
    if scale is None and len(factors) == 1 and factors <= {1.0, 4.0}:
        return int(factors.pop())
    if scale in (1, 4) and factors <= {float(scale)}:
        return scale
    listed = ", ".join(sorted(f"{factor:.3g}" for factor in factors)) or "?"
    raise StagingError(
        f"The ground truth is {listed} times as large as the input and scale is {scale}: 1 (same size) and 4 (the "
        "input is a quarter) are the two size modes (option scale)."
    )


def lay_out(adapter: Adapter, tasks: Sequence[RestorationTask], scale: int) -> list[Staged]:
    """The staging of every image; nothing is written.

    Raises:
        StagingError: a face method was given images that are no squares, or no references where it needs some.
    """
    names = stems([task.name for task in tasks])
    rows, wrong = [], []
    for task in tasks:
        height, width = image_header(task.path).size
        target = (scale * height, scale * width)
        if adapter.sizes == "face":
            if height != width:
                wrong.append(f"{task.path.name} is {width} x {height}")
            size = expected = kept = (FACE, FACE)
        else:
            multiple = adapter.multiple * (4 if adapter.sizes == "x4" and scale == 1 else 1)
            padded = tuple(side + -side % multiple for side in (height, width))
            shrunk = adapter.sizes == "x4" and scale == 1
            size = tuple(side // 4 for side in padded) if shrunk else padded
            expected, kept = tuple(scale * side for side in padded), target
        given = {"size": size, "expected": expected, "kept": kept, "target": target, "references": task.references}
        rows.append(Staged(task.name, names[task.name], task.path, **given))
    if wrong:
        raise StagingError(
            f"{adapter.title} restores aligned faces, squares that show one face; {', '.join(wrong[:4])}. "
            "Give it faces (such as a run's faces/ folder) and not scenes."
        )
    alone = [row.name for row in rows if not row.references] if adapter.uses_references else []
    if alone:
        raise StagingError(
            f"{adapter.title} needs references, and {len(alone)} of {len(rows)} images have none, such as "
            f"{alone[0]}: say references=FOLDER, or input an InScene set."
        )
    return rows


def stage(adapter: Adapter, row: Staged, folder: Path) -> None:
    """Write one image below the program's input folder, 8-bit sRGB PNG."""
    image = read_tensor(row.path)
    if adapter.sizes == "face":
        image = resize(image, (FACE, FACE)) if image.shape[-1] != FACE else image
    else:
        shrunk = adapter.sizes == "x4" and row.target == tuple(image.shape[-2:])
        image = pad_to_multiple(image[None], adapter.multiple * (4 if shrunk else 1))[0][0]
        image = resize(image, row.size) if tuple(image.shape[-2:]) != row.size else image
    people = {"references": row.references, "count": adapter.references}
    stage_input(folder, row.stem, image, layout=adapter.layout, **people)


def collect_output(adapter: Adapter, row: Staged, path: Path) -> tuple[Tensor | None, str]:
    """The prediction made from the program's output at `path` with a note, or None with the reason."""
    image, note = read_result(path, row.expected if adapter.other_sizes == "refuse" else None)
    if image is None:
        return None, note
    height, width = image.shape[-2:]
    if (height, width) != row.expected:
        image, note = resize(image, row.expected), f"resized from {width} x {height}"
    image = image[..., : row.kept[0], : row.kept[1]]
    if tuple(image.shape[-2:]) != row.target:
        image = resize(image, row.target)
    if nothing := nothing_in(image):
        return None, f"{path.name} is {nothing}, which is how NaN looks"
    return image, note
