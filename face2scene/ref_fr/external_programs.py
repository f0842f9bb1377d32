"""Input folders of external programs, in two layouts, and reading their output images."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from face2scene.image_io.arrays import ImageError, read_tensor, write_png

LAYOUTS = ("flat", "identity")


def stage_input(
    folder: Path, stem: str, image: Tensor, *, layout: str, references: Sequence[Path] = (), count: int = 0
) -> None:
    """Write one image (3, H, W) in [0, 1] below a program's input folder, as 8-bit PNG.

    Args:
        layout: `flat` is {stem}.png. `identity` (InstantRestore's) is a folder {stem}/ with degraded.png, gt.png (also
            the degraded image, because there is no ground truth) and conditioning/ with the references.
        references, count: see `stage_references`; of the layout `identity`.
    """
    if layout == "flat":
        write_png(folder / f"{stem}.png", image)
        return
    for name in ("degraded", "gt"):
        write_png(folder / stem / f"{name}.png", image)
    stage_references(references, folder / stem / "conditioning", count)


def stage_references(references: Sequence[Path], folder: Path, count: int = 0) -> None:
    """Write `count` references, repeated from the first when there are fewer; 0 writes all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count or len(references)):
        write_png(folder / f"reference_{number:02d}.png", read_tensor(references[number % len(references)]))


def read_result(path: Path, size: tuple[int, int] | None = None) -> tuple[Tensor | None, str]:
    """A program's output image (3, H, W), or None and the reason.

    Args:
        size: required (H, W); None accepts any.
    """
    if not path.is_file():
        return None, f"no {path.name} was left"
    try:
        image = read_tensor(path)
    except (ImageError, OSError) as error:
        return None, f"{path.name} cannot be read ({error})"
    height, width = image.shape[-2:]
    if size is not None and (height, width) != size:
        return None, f"{path.name} is {width} x {height} and should be {size[1]} x {size[0]}"
    return image, ""
