"""Images that one camera took at one time: they share their degradation, and a face in one measures it for all."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from face2scene.image_io.metadata import Shot, shot_of
from face2scene.inference.results import DegradationEstimate, averaged
from face2scene.inference.tasks import RestorationTask


class Bursts:
    """The bursts among some jobs.

    Args:
        tasks: all of them, whatever share this process takes, so that a share changes nothing.
        seconds: between two images of a burst, at most; 0 is no bursts.
    """

    def __init__(self, tasks: Sequence[RestorationTask], seconds: float):
        self.tasks, self.seconds = tasks, seconds
        self._shots: dict[str, Shot | None] = {}
        self._measured: dict[str, DegradationEstimate] = {}

    def siblings(self, task: RestorationTask) -> list[RestorationTask]:
        """Images in the same folder, of the same camera, near in time; in the order of the jobs, without `task`."""
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

    def averaged(
        self,
        task: RestorationTask,
        own: DegradationEstimate,
        estimate: Callable[[RestorationTask], DegradationEstimate],
    ) -> DegradationEstimate:
        """The measurement of an image without a usable face: its siblings' mean, or its own where they have none."""
        siblings = self.siblings(task)
        if not siblings:
            return own
        for sibling in siblings:
            if sibling.file not in self._measured:
                found = estimate(sibling)
                self._measured[sibling.file] = replace(found, face_estimates=(), faces=())  # the tokens are small
        known = [other for other in siblings if self._measured[other.file].tokens.source == "pair"]
        if not known:
            own.notes["warnings"].append(f"No face could be used in the {len(siblings)} other images of its burst.")
            return own
        names = ", ".join(other.file for other in known[:4]) + (" ..." if len(known) > 4 else "")
        mean = averaged([self._measured[other.file] for other in known], own)
        mean.notes["warnings"][-1] = (  # it said what stood in
            f"The tokens are the mean of {len(known)} other image(s) of its burst ({names}), because "
            f"{own.notes['no_pair']}."
        )
        mean.notes["burst"] = [other.file for other in known]
        return mean

    def _shot(self, task: RestorationTask) -> Shot | None:
        if task.file not in self._shots:
            self._shots[task.file] = shot_of(task.path)
        return self._shots[task.file]
