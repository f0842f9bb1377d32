"""Write docs/baselines.md from configs/baseline: what is compared, at which commit, and where its command was read.

python scripts/list_baselines.py [FILE]
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from face2scene.common.files import atomic_write
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.baselines.adapter import Adapter
from face2scene.eval.tables.render import plain_markdown

INTRO = """# The compared methods

`python scripts/run_baseline.py` lists them with what each lacks on this machine, and `baseline=NAME --dry-run` prints
the exact command. `python scripts/list_baselines.py` makes this page from `configs/baseline`. No external program was
run for it: their weights were not at hand. Their commands were compared with the options that their own files declare
(`tests/support/program_options.yaml`, with which a test parses every command); where a file of the pinned commit was
not at hand, the last column says what was read in its place.

Sizes: `any` takes an image of full size at scale 1 and a quarter of its sides at 4; `x4` enlarges by four alone; `same`
keeps the size; `face` takes aligned faces of 512 pixels. Which size mode, which weights of DiffBIR and SinSR, and which
captioner of SUPIR and PASD the paper used is not stated; ours are in each file's first lines. RestorerID (one
reference) has no file: of its program only a changed copy was at hand, which takes other arguments.
"""


def page() -> str:
    """docs/baselines.md."""
    outside, inside = [], []
    for path in sorted((REPOSITORY / "configs/baseline").glob("*.yaml")):
        adapter = Adapter.from_dict(OmegaConf.to_container(OmegaConf.load(path)))
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in adapter.settings.items())
        if adapter.kind != "command":
            inside.append([path.stem, adapter.title, adapter.licence, settings, adapter.tried])
            continue
        link = f"[{adapter.repository.removeprefix('https://github.com/')}]({adapter.repository}) {adapter.commit[:8]}"
        read = adapter.tried.removeprefix("never run here; compared with ")
        seed = "" if adapter.seedable else "no"
        outside.append([path.stem, link, adapter.licence, adapter.sizes, settings, seed, read])
    header = ["`baseline=`", "repository, commit", "licence", "sizes", "settings", "seed fixes it", "compared with"]
    parts = [INTRO, "## External programs\n", plain_markdown(header, outside), "## In this process\n"]
    parts.append(plain_markdown(["`baseline=`", "method", "licence", "settings", "tried"], inside))
    return "\n".join(parts)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs/baselines.md"
    with atomic_write(target) as partial:
        partial.write_text(page(), encoding="utf-8", newline="\n")
