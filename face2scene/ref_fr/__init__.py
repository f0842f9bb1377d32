"""Stage I: reference-based face restorers behind one interface (supplement 2.3)."""

from face2scene.ref_fr.base import AlignedRefFR, FaceRestorationError, RefFR, face_pair
from face2scene.ref_fr.stand_ins import CalibratedPerturbation, Copy, GroundTruth, Mixed, Perturbed

__all__ = [
    "AlignedRefFR",
    "CalibratedPerturbation",
    "Copy",
    "FaceRestorationError",
    "GroundTruth",
    "Mixed",
    "Perturbed",
    "RefFR",
    "face_pair",
]
