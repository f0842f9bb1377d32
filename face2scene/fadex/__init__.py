"""FaDeX, the face degradation extractor: it looks at one face twice and says what happened to the picture."""

from face2scene.fadex.encoder import MINIMUM_SIZE, FaDeX
from face2scene.fadex.moco import Contrast, KeyQueue, MoCo
from face2scene.fadex.probe import compare, leakage, probe, retrieval
from face2scene.fadex.readout import Readout

__all__ = [
    "MINIMUM_SIZE",
    "Contrast",
    "FaDeX",
    "KeyQueue",
    "MoCo",
    "Readout",
    "compare",
    "leakage",
    "probe",
    "retrieval",
]
