"""basicsr 1.4.2 as an outside witness. It imports a torchvision module that is gone; this brings the one name back."""

import sys
import types
import warnings

import numpy as np
from torchvision.transforms import functional

_gone = types.ModuleType("torchvision.transforms.functional_tensor")
_gone.rgb_to_grayscale = functional.rgb_to_grayscale
sys.modules.setdefault(_gone.__name__, _gone)

with warnings.catch_warnings(), np.errstate():  # it sets NumPy's for the whole process
    warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy's old names in its metrics
    from basicsr.data import degradations
    from basicsr.utils.diffjpeg import DiffJPEG
    from basicsr.utils.img_process_util import filter2D

__all__ = ["DiffJPEG", "degradations", "filter2D", "rrdbnet", "srvgg"]


def rrdbnet(*sizes: int):
    """Real-ESRGAN's network. Its module is imported here, since it brings every other network of basicsr."""
    from basicsr.archs.rrdbnet_arch import RRDBNet

    return RRDBNet(*sizes).eval()


def srvgg(**sizes: int):
    """Real-ESRGAN's compact network, see `rrdbnet`."""
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    return SRVGGNetCompact(**sizes).eval()
