"""The backend `facexlib`: RetinaFace, 68 landmarks through WFLW's 98, and ArcFace IR-SE50, all in torch.

The networks are facexlib's, its loaders are not used: they download into site-packages and require CUDA, and the
landmark decoding fails under current NumPy (`np.float`, and an index past the last cell of a heat map).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.common.types import Face
from face2scene.faces.align import warp
from face2scene.faces.embedding import ARCFACE_SAME, IdentityNet, file_stamp, unreadable, with_identities
from face2scene.faces.pose import upright_view
from face2scene.image_io.arrays import to_tensor

# Network to asset and file.
_RETINAFACE = {
    "resnet50": ("retinaface_resnet50", "detection_Resnet50_Final.pth"),
    "mobile0.25": ("retinaface_mobile025", "mobilenet0.25_Final.pth"),
}
_FAN = ("wflw_fan", "alignment_WFLW_4HG.pth")
_IR_SE50 = ("arcface_ir_se50", "recognition_arcface_ir_se50.pth")
_FAN_SIDE, _FAN_CELL = 256, 4  # pixels of its input, and of one cell of its heat maps
_FAN_MARGIN = 1.1  # our setting: side of its crop over the face box
_FAN_BATCH = 8  # faces at once; 70 MB of heat maps and features each


@dataclass(eq=False, kw_only=True)
class IrSe50:
    """facexlib's ArcFace, an `embedding.IdentityNet`; InfiniteYou is conditioned on its vectors."""

    name = "facexlib_ir_se50"
    same_threshold = ARCFACE_SAME  # not measured: the weights are on no package index
    device: str = "cpu"

    @torch.inference_mode()
    def embed(self, crops: Sequence[Tensor]) -> np.ndarray:
        net = _opened("ir_se50", *_IR_SE50, self.device)
        batch = torch.stack(list(crops)).flip(1) * 2 - 1  # BGR
        return nn.functional.normalize(net(batch.to(self.device))).float().cpu().numpy()


@dataclass(eq=False, kw_only=True)
class FacexBackend:
    """The networks of facexlib; see `faces.detect.Backend`."""

    network: str = "resnet50"  # RetinaFace's backbone: facexlib's default, or `mobile0.25`
    landmarks: bool = True  # else `Face.landmarks_68` is None and the pose comes from five points
    identity: IdentityNet | None = None  # None is `IrSe50` on the same device
    score_threshold: float = 0.8  # lowest detector score, 0 to 1 (facexlib's)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.network not in _RETINAFACE:
            raise ValueError(f"faces.backend.network is {self.network!r}: choose {' or '.join(_RETINAFACE)}.")
        self.identity = self.identity or IrSe50(device=self.device)
        self.identity_model = self.identity.name
        self.same_threshold = self.identity.same_threshold

    @torch.inference_mode()
    def search(self, image: np.ndarray) -> list[Face]:
        net = _opened(self.network, *_RETINAFACE[self.network], self.device)
        bgr = np.ascontiguousarray(image[..., ::-1])
        rows = net.detect_faces(bgr, conf_threshold=self.score_threshold).astype(np.float64)
        return [Face(tuple(float(v) for v in row[:4]), float(row[4]), row[5:].reshape(5, 2)) for row in rows]

    def describe(self, image: np.ndarray, found: Sequence[Face], *, identities: bool) -> list[Face]:
        if not found:
            return []
        points = self._landmarks(image, found) if self.landmarks else [None] * len(found)
        faces = [replace(face, landmarks_68=p) for face, p in zip(found, points, strict=True)]
        return with_identities(image, faces, self.identity) if identities else faces

    @torch.inference_mode()
    def _landmarks(self, image: np.ndarray, found: Sequence[Face]) -> list[np.ndarray]:
        net = _opened("fan", *_FAN, self.device)
        to_68 = import_optional("facexlib.alignment", "faces", why="The 68 landmarks of facexlib").landmark_98_to_68
        tensor = to_tensor(image)
        views = [upright_view(face.box, face.landmarks_5, _FAN_SIDE, _FAN_MARGIN) for face in found]
        crops = torch.stack([warp(tensor, view, (_FAN_SIDE, _FAN_SIDE)) for view in views])
        maps = [net(part.to(self.device))[0][-1][:, :-1].float().cpu() for part in crops.split(_FAN_BATCH)]
        points = peaks(torch.cat(maps).numpy()) * _FAN_CELL - 0.5
        return [view.inverse()(to_68(p).astype(np.float64)) for view, p in zip(views, points, strict=True)]


def peaks(maps: np.ndarray) -> np.ndarray:
    """The maxima of heat maps, to a quarter of a cell.

    Args:
        maps: (B, N, H, W).

    Returns:
        (B, N, 2) x, y in cells, the middle of the first at (0.5, 0.5), moved by a quarter towards the higher neighbour;
        not at the border, where facexlib reads past the map.
    """
    number, points, height, width = maps.shape
    flat = maps.reshape(-1, height * width)
    rows = np.arange(len(flat))
    y, x = np.divmod(flat.argmax(1), width)

    def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return flat[rows, y.clip(0, height - 1) * width + x.clip(0, width - 1)]

    aside = np.sign(at(y, x + 1) - at(y, x - 1)) * ((x > 0) & (x < width - 1))
    below = np.sign(at(y + 1, x) - at(y - 1, x)) * ((y > 0) & (y < height - 1))
    return (np.stack([x + 0.25 * aside, y + 0.25 * below], axis=1) + 0.5).reshape(number, points, 2)


def _opened(kind: str, asset: str, file: str, device: str) -> nn.Module:
    path = catalogue.folder(asset) / file
    return _network(kind, path, device, *file_stamp(path))


@lru_cache(maxsize=8)
def _network(kind: str, path: Path, device: str, *_stamp: int) -> nn.Module:
    why = "The faces backend facexlib"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's of an argument that facexlib passes
        if kind in _RETINAFACE:
            module = import_optional("facexlib.detection.retinaface", "faces", why=why)
            net = module.RetinaFace(network_name=kind, device=torch.device(device))
        elif kind == "fan":
            module = import_optional("facexlib.alignment", "faces", why=why)
            net = module.FAN(num_modules=4, num_landmarks=98, device=torch.device(device))
        else:
            module = import_optional("facexlib.recognition.arcface_arch", "faces", why=why)
            net = module.Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    # The landmark file may hold a training score beside its weights, a NumPy scalar, which is allowed.
    scalar = np.float64(0).__reduce__()[0]  # numpy moved its module in 2.0
    number = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
    try:
        with torch.serialization.safe_globals(number):
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()}, strict=True)
    except Exception as error:  # torch raises many kinds for a corrupt file
        raise unreadable(path, error) from error
    return net.eval().to(device)
