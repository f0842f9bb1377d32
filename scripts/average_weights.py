"""Average two bases of one training: `python scripts/average_weights.py FIRST SECOND OUTPUT [SHARE]`.

Each is a folder as `face2scene train-tiny-base` exports it (runs/NAME/weights), of the same shapes; SECOND went on from
FIRST. OUTPUT is a third one, with the mean of their VAE, UNet and skip connections, and the rest of SECOND. SHARE, from
0 to 1, is the weight of SECOND in the mean: 0.5 unless given.
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
    if len(words) not in (3, 4):
        raise SystemExit(__doc__)
    first, second, output = map(Path, words[:3])
    try:
        share = float(words[3]) if len(words) == 4 else 0.5
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise SystemExit(f"SHARE is {words[3]}: give a number from 0 to 1, the weight of SECOND.")
    if output.exists():
        raise SystemExit(f"There is something at {output} already: give another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=".average-") as place:  # removed whatever happens
        partial = Path(shutil.copytree(second, Path(place) / output.name))
        for file in sorted(partial.rglob("*.safetensors")):
            inside = file.relative_to(partial)
            if _SHARED not in inside.parts:
                average_into(file, first / inside, share)
        partial.rename(output)


def average_into(file: Path, other: Path, share: float) -> None:
    """Replace the weights of a safetensors file, which count by `share`, by their mean with those of another one."""
    if not other.is_file():
        raise SystemExit(f"There is no {other}: the first base is not of the second one's kind.")
    before, after = load_file(other), load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    for name, weight in after.items():
        if not name.startswith(_OTHER):
            if name not in before or before[name].shape != weight.shape:
                raise SystemExit(f"{other} and the second base's file are of different shapes, such as {name}.")
            after[name] = ((1 - share) * before[name].float() + share * weight.float()).to(weight.dtype)
    save_file(after, file, metadata=header)


if __name__ == "__main__":
    main(sys.argv[1:])
