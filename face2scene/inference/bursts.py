"""Bursts: photos that one camera took within seconds share their degradation, so a face in one serves all."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from face2scene.image_io.metadata import Shot, shot_of
from face2scene.inference.results import DegradationEstimate, average_estimates
from face2scene.inference.tasks import RestorationTask


class Bursts:
    """The bursts among some tasks.

    Args:
        tasks: those of all processes, so that the number of processes changes no result.
        seconds: the longest time between two images of a burst; 0 means no bursts.
    """

    def __init__(self, tasks: Sequence[RestorationTask], seconds: float):
        self.tasks, self.seconds = tasks, seconds
        self._shots: dict[str, Shot | None] = {}
        self._estimates: dict[str, DegradationEstimate] = {}

    def siblings(self, task: RestorationTask) -> list[RestorationTask]:
        """Images of the same folder, camera and time as `task`, without it; in the order of the tasks."""
        shot = self._shot(task)
        if shot is None or not self.seconds:
            return []
        others = [other for other in self.tasks if other.relative_dir == task.relative_dir and other.path != task.path]
        return [
            other
            for other in others
            if (taken := self._shot(other)) is not None
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
        mean = average_estimates([self._estimates[other.file] for other in with_face], own)
        mean.notes["warnings"][-1] = (  # in place of the fallback's warning
            f"The tokens are the mean of {len(with_face)} other image(s) of its burst ({names}), because "
            f"{own.notes['no_pair']}."
        )
        mean.notes["burst"] = [other.file for other in with_face]
        return mean

    def _shot(self, task: RestorationTask) -> Shot | None:
        if task.file not in self._shots:
            self._shots[task.file] = shot_of(task.path)
        return self._shots[task.file]
