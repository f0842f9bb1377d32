"""Bursts: photos that one camera took within seconds share their degradation, so a face in one serves all."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from face2scene.common.types import DegradationTokens
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
        self._estimates: dict[str, DegradationEstimate] = {}

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
        siblings = self.siblings(task)
        for sibling in siblings:
            if sibling.file not in self._estimates:  # without the features, which need much memory
                self._estimates[sibling.file] = replace(estimate(sibling), face_estimates=(), faces=())
        with_face = [other for other in siblings if self._estimates[other.file].tokens.source == "pair"]
        if not with_face:
            if siblings:
                own.notes["warnings"].append(f"No face could be used in the {len(siblings)} other images of its burst.")
            return own
        names = ", ".join(other.file for other in with_face[:4]) + (" ..." if len(with_face) > 4 else "")
        warning = (
            f"The tokens are the mean of {len(with_face)} other image(s) of its burst ({names}), because "
            f"{own.notes['no_pair']}."
        )
        warnings = [*own.notes["warnings"][:-1], warning]  # in place of the fallback's
        notes = own.notes | {"warnings": warnings, "burst": [other.file for other in with_face]}
        tokens = [self._estimates[other.file].tokens.tokens.mean(0, keepdim=True) for other in with_face]
        return replace(own, tokens=DegradationTokens(torch.cat(tokens).mean(0, keepdim=True), "burst"), notes=notes)
