"""Inputs that several test files of tests/eval share."""

import sys
from pathlib import Path

from face2scene.eval.sweeps.plan import Step, SweepPlan


def plan_of_steps(folder: Path, *rows: tuple[str, str, tuple[str, ...]]) -> SweepPlan:
    """Steps of one line of Python each; `product` is a file of the step's name."""
    made = [
        Step(name, (sys.executable, "-S", "-c", code, str(folder / name)), needs, folder / name)
        for name, code, needs in rows
    ]
    return SweepPlan(folder, tuple(made), (), {}, {})


TOUCH = "import sys; open(sys.argv[1], 'w').close()"
