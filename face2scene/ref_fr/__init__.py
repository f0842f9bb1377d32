"""Stage I: reference-based face restorers, all behind one door (supplement 2.3)."""

from face2scene.ref_fr.base import AlignedRefFR, RefFR, StageOneError, face_pair
from face2scene.ref_fr.stand_ins import Copy, GroundTruth, Imitation, Mixed, Perturbed

__all__ = [
    "AlignedRefFR",
    "Copy",
    "GroundTruth",
    "Imitation",
    "Mixed",
    "Perturbed",
    "RefFR",
    "StageOneError",
    "face_pair",
]
