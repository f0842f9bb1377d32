"""A Stage I for tests, of which every answer is known."""

import torch

from face2scene.ref_fr import AlignedRefFR, FaceRestorationError
from face2scene.ref_fr.base import RestoredFace, in_bytes


class Negative(AlignedRefFR):
    """Turns colours round and counts the faces it was shown; refuses a face without references."""

    name, size = "negative", 32

    def __init__(self, version: str = "1"):
        self.version, self.calls = version, []

    @property
    def fingerprint(self) -> str:
        return f"negative-{self.version}"

    def restore_aligned(self, faces, references):
        if any(not paths for paths in references):
            raise FaceRestorationError("there are no references")
        self.calls.append(len(faces))
        rows = zip(faces, references, strict=True)
        return [RestoredFace(in_bytes(1 - face), (f"{len(paths)} references",)) for face, paths in rows]


def faces(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)) / 255
