"""Average two bases of one training: `python scripts/average_weights.py FIRST SECOND OUTPUT`.

Each is a folder as `face2scene train-tiny-base` exports it (runs/NAME/weights), of the same shapes; SECOND went on from
FIRST. OUTPUT is a third one, with the mean of their VAE, UNet and skip connections, and the rest of SECOND.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import safe_open
from safetensors.torch import load_file, save_file

_SHARED = "text_encoder"  # folder of the base that is not trained
_OTHER = ("mapnet.", "null_tokens")  # weights in the restorer's file that the base's training leaves random


def main(words: list[str]) -> None:
    """Write the average; refuses what is there already, or a pair of other shapes."""
    if len(words) != 3:
        raise SystemExit(__doc__)
    first, second, output = map(Path, words)
    if output.exists():
        raise SystemExit(f"There is something at {output} already: give another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=".average-") as place:  # removed whatever happens
        partial = Path(shutil.copytree(second, Path(place) / output.name))
        for file in sorted(partial.rglob("*.safetensors")):
            inside = file.relative_to(partial)
            if _SHARED not in inside.parts:
                average_into(file, first / inside)
        partial.rename(output)


def average_into(file: Path, other: Path) -> None:
    """Replace the weights of a safetensors file by their mean with those of another one."""
    if not other.is_file():
        raise SystemExit(f"There is no {other}: the first base is not of the second one's kind.")
    before, after = load_file(other), load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    for name, weight in after.items():
        if not name.startswith(_OTHER):
            if name not in before or before[name].shape != weight.shape:
                raise SystemExit(f"{other} and the second base's file are of different shapes, such as {name}.")
            after[name] = (0.5 * before[name].float() + 0.5 * weight.float()).to(weight.dtype)
    save_file(after, file, metadata=header)


if __name__ == "__main__":
    main(sys.argv[1:])
