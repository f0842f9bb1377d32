"""Public scripts in the process of the tests, without the seconds of their imports."""

import runpy
import sys

from hydra.core.global_hydra import GlobalHydra

from face2scene.common.reproducibility import REPOSITORY

TINY = ("data=tiny", "degradation=tiny", "fadex=tiny", "train=tiny", "faces=none")
SHIPPED = f"paths.shipped={REPOSITORY / 'checkpoints'}"


def run_script(name: str, overrides: list[str]) -> int:
    """Exit code of a script; the caller restores sys.argv."""
    GlobalHydra.instance().clear()
    sys.argv = [str(REPOSITORY / "scripts" / name), *overrides]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0
