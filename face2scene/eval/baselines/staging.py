"""Inputs of external programs as they need them, and their outputs checked.

input --(padded; reduced for programs of x4 only; resized for programs of faces only)--> staged PNG
output --(cropped; size checked; not of one colour)--> prediction with the input's name
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from face2scene.eval.baselines.adapter import Adapter, stems
from face2scene.eval.scoring.pairing import image_header
from face2scene.image_io.arrays import list_images, nothing_in, pad_to_multiple, read_tensor, resize
from face2scene.inference.tasks import RestorationTask
from face2scene.ref_fr.external_programs import read_result, stage_input

FACE = 512  # side of an aligned face, as all these methods were trained
SHRINK = "antialiased bicubic (torch), to a quarter"


class StagingError(ValueError):
    """Images that do not fit a method or its size mode."""


@dataclass(frozen=True)
class Staged:
    """One image as it is staged for a program, and the sizes (H, W) of its result."""

    name: str  # place in the input folder, without the suffix; the prediction has the same among the predictions
    stem: str  # its name among the staged images
    path: Path
    size: tuple[int, int]  # staged
    expected: tuple[int, int]  # that the program's result must have
    target: tuple[int, int]  # of the prediction; what a scene's result has beyond it is padding
    references: tuple[Path, ...] = ()


def gts_of(tasks: Sequence[RestorationTask], gt: str | Path | None) -> Mapping[str, Path]:
    """Stem -> ground truth of every image to be made: of the InScene set, or of gt=FOLDER; empty where there is none.

    Raises:
        FileNotFoundError: an image without its ground truth.
        ValueError: two images that the scores could not tell apart.
    """
    if gt is None and not all(task.gt is not None for task in tasks):
        return {}
    count = Counter(task.path.stem for task in tasks)
    twice = [name for name, times in count.items() if times > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names occur more than once in the input, such as {twice[0]}, and the scores pair "
            "predictions with their ground truth by name: rename the images, or say gt=null for predictions alone."
        )
    if all(task.gt is not None for task in tasks):
        return {task.path.stem: task.gt for task in tasks}
    found = {path.stem: path for path in list_images(gt)}
    absent = [task.path.stem for task in tasks if task.path.stem not in found]
    if absent:
        raise FileNotFoundError(f"gt={gt} lacks {len(absent)} of the images, such as {absent[0]}.")
    return {task.path.stem: found[task.path.stem] for task in tasks}


def scale_of(tasks: Sequence[RestorationTask], gts: Mapping[str, Path] | None, scale: int | None) -> int:
    """The factor from input to prediction, 1 or 4: `scale`, else that of the ground truth, else 1.

    Raises:
        StagingError: the sizes have another factor, or several.
    """
    found: set[float] = set()
    for task in tasks:
        gt = (gts or {}).get(task.path.stem) or task.gt
        if gt is not None:
            (high, wide), (height, width) = image_header(gt).size, image_header(task.path).size
            found |= {high / height, wide / width}
    wanted = next(iter(found), 1) if scale is None else scale
    if wanted in (1, 4) and found <= {wanted}:
        return int(wanted)
    listed = ", ".join(sorted(f"{factor:.3g}" for factor in found)) or "?"
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
            size = expected = (FACE, FACE)
        elif adapter.sizes == "same":
            size = expected = tuple(side + -side % adapter.multiple for side in target)
        else:
            factor = 4 if adapter.sizes == "x4" and scale == 1 else 1
            padded = tuple(side + -side % (adapter.multiple * factor) for side in (height, width))
            size, expected = tuple(side // factor for side in padded), tuple(scale * side for side in padded)
        rows.append(Staged(task.name, names[task.name], task.path, size, expected, target, task.references))
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
    if adapter.sizes == "same" and row.target != tuple(image.shape[-2:]):
        image = resize(image, row.target)
    if adapter.sizes != "face":
        shrunk = adapter.sizes == "x4" and row.target == tuple(image.shape[-2:])
        image = pad_to_multiple(image[None], adapter.multiple * (4 if shrunk else 1))[0][0]
    if tuple(image.shape[-2:]) != row.size:
        image = resize(image, row.size)
    stage_input(folder, row.stem, image, layout=adapter.layout, references=row.references, count=adapter.references)


def collect_output(adapter: Adapter, row: Staged, path: Path) -> tuple[Tensor | None, str]:
    """The prediction made from the program's output at `path` with a note, or None with the reason."""
    image, note = read_result(path, row.expected if adapter.other_sizes == "refuse" else None)
    if image is None:
        return None, note
    if (mode := image_header(path).mode) != "RGB":
        return None, f"{path.name} is {mode} and should be RGB of 8 bit"
    height, width = image.shape[-2:]
    if (height, width) != row.expected:
        image, note = resize(image, row.expected), f"resized from {width} x {height}"
    if adapter.sizes != "face":
        image = image[..., : row.target[0], : row.target[1]]
    elif row.target != row.expected:
        image = resize(image, row.target)
    if nothing := nothing_in(image):
        return None, f"{path.name} is {nothing}, which is how NaN looks"
    return image, note
