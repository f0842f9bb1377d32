"""Stage I: reference-based face restorers, all behind one door (supplement 2.3)."""

from face2scene.ref_fr.base import RefFR, face_pair
from face2scene.ref_fr.simple import Copy, GroundTruth, Perturbed

__all__ = ["Copy", "GroundTruth", "Perturbed", "RefFR", "face_pair"]
