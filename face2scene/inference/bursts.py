"""Bursts: photos that one camera took within seconds share their degradation, so a face in one serves all."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from face2scene.common.types import DegradationTokens
from face2scene.image_io.arrays import ImageError
from face2scene.image_io.metadata import shot_of
from face2scene.inference.results import DegradationEstimate
from face2scene.inference.tasks import RestorationTask


class Bursts:
    """The bursts among some tasks.

    Args:
        tasks: those of all processes, so that the number of processes changes no result.
        seconds: the longest time between two images of a burst; 0 means no bursts.
    """

    def __init__(self, tasks: Sequence[RestorationTask], seconds: float):
        self.tasks, self.seconds = tasks, seconds
        self._shots = {task.file: shot_of(task.path) for task in tasks} if seconds else {}
        self._estimates: dict[str, DegradationEstimate | None] = {}  # None of an image that cannot be read

    def siblings(self, task: RestorationTask) -> list[RestorationTask]:
        """Images of the same folder, camera and time as `task`, without it; in the order of the tasks."""
        shot = self._shots.get(task.file)
        if shot is None:
            return []
        others = [other for other in self.tasks if other.relative_dir == task.relative_dir and other.path != task.path]
        return [
            other
            for other in others
            if (taken := self._shots[other.file]) is not None
            and taken.camera == shot.camera
            and abs(taken.time - shot.time) <= self.seconds
        ]

    def average(
        self,
        task: RestorationTask,
        own: DegradationEstimate,
        estimate: Callable[[RestorationTask], DegradationEstimate],
    ) -> DegradationEstimate:
        """The estimate of an image without a usable face: the mean of its siblings' tokens, or `own` without any."""
        siblings, tokens = self.siblings(task), {}
        for sibling in siblings:
            if sibling.file not in self._estimates:
                self._estimates[sibling.file] = _estimated(sibling, estimate)
            found = self._estimates[sibling.file]
            if found is not None and found.tokens.source == "pair":
                tokens[sibling.file] = found.tokens.tokens.mean(0, keepdim=True)
        if not tokens:
            if siblings:
                own.notes["warnings"].append(f"No face could be used in the {len(siblings)} other images of its burst.")
            return own
        names = ", ".join(list(tokens)[:4]) + (" ..." if len(tokens) > 4 else "")
        warning = (
            f"The tokens are the mean of {len(tokens)} other image(s) of its burst ({names}), because "
            f"{own.notes['no_pair']}."
        )
        warnings = [*own.notes["warnings"][:-1], warning]  # in place of the fallback's
        notes = own.notes | {"warnings": warnings, "burst": list(tokens)}
        mean = torch.cat(list(tokens.values())).mean(0, keepdim=True)
        return replace(own, tokens=DegradationTokens(mean, "burst"), notes=notes)


def _estimated(
    task: RestorationTask, estimate: Callable[[RestorationTask], DegradationEstimate]
) -> DegradationEstimate | None:
    """Without the features, which need much memory; None of a file that cannot be read, which its own line says."""
    try:
        return replace(estimate(task), face_estimates=(), faces=())
    except (ImageError, OSError):
        return None
