"""FaDeX, the face degradation extractor: features of an image's degradation from a restored and a degraded face."""

from face2scene.models.fadex.cosine_probe import compare, nuisance_retrieval, retrieval
from face2scene.models.fadex.encoder import MINIMUM_SIZE, FaDeX
from face2scene.models.fadex.factor_heads import FactorHeads, Readout
from face2scene.models.fadex.linear_readout import LinearProbe
from face2scene.models.fadex.moco import Contrast, KeyQueue, MoCo

__all__ = [
    "MINIMUM_SIZE",
    "Contrast",
    "FaDeX",
    "FactorHeads",
    "KeyQueue",
    "LinearProbe",
    "MoCo",
    "Readout",
    "compare",
    "nuisance_retrieval",
    "retrieval",
]
