"""Pictures that one camera took at one time: they share their damage, and a face in one measures it for all."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from face2scene.image_io.metadata import Shot, shot_of
from face2scene.inference.results import Measurement, averaged
from face2scene.inference.tasks import Job


class Bursts:
    """The bursts among some jobs.

    Args:
        jobs: all of them, whatever share this process takes, so that a share changes nothing.
        seconds: between two pictures of a burst, at most; 0 is no bursts.
    """

    def __init__(self, jobs: Sequence[Job], seconds: float):
        self.jobs, self.seconds = jobs, seconds
        self._shots: dict[str, Shot | None] = {}
        self._measured: dict[str, Measurement] = {}

    def siblings(self, job: Job) -> list[Job]:
        """Pictures in the same folder, of the same camera, near in time; in the order of the jobs, without `job`."""
        shot = self._shot(job)
        if shot is None or not self.seconds:
            return []
        others = [other for other in self.jobs if other.inside == job.inside and other.path != job.path]
        return [
            other
            for other in others
            if (taken := self._shot(other)) is not None
            and taken.camera == shot.camera
            and abs(taken.time - shot.time) <= self.seconds
        ]

    def averaged(self, job: Job, own: Measurement, measure: Callable[[Job], Measurement]) -> Measurement:
        """The measurement of a picture without a usable face: its siblings' mean, or its own where they have none."""
        siblings = self.siblings(job)
        if not siblings:
            return own
        for sibling in siblings:
            if sibling.file not in self._measured:
                measured = measure(sibling)
                self._measured[sibling.file] = replace(measured, readings=(), faces=())  # the tokens are small
        known = [other for other in siblings if self._measured[other.file].tokens.source == "pair"]
        if not known:
            own.notes["warnings"].append(f"No face could be used in the {len(siblings)} other pictures of its burst.")
            return own
        names = ", ".join(other.file for other in known[:4]) + (" ..." if len(known) > 4 else "")
        mean = averaged([self._measured[other.file] for other in known], own)
        mean.notes["warnings"][-1] = (  # it said what stood in
            f"The tokens are the mean of {len(known)} other picture(s) of its burst ({names}), because "
            f"{own.notes['no_pair']}."
        )
        mean.notes["burst"] = [other.file for other in known]
        return mean

    def _shot(self, job: Job) -> Shot | None:
        if job.file not in self._shots:
            self._shots[job.file] = shot_of(job.path)
        return self._shots[job.file]
