"""Generated people: the packaged MobileStyleGAN with several images per identity.

An identity is a style vector. Another image of the same person is that vector moved toward a random other one, which
changes pose, light and expression more than the face (identity cosine 0.79 to 0.93 at the default drift). Image N of
person M is always the same.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.data.generators.base import GenerationRequest

_MEAN_SAMPLES = 256  # styles averaged for the truncation trick


class FaceGenerator:
    """Images of generated people, 1024 x 1024.

    Args:
        truncation: distance of identities from the mean face, 0 to 1; higher is more varied and less realistic.
        drift: distance of an image from its identity, as a share of the way to a random other style.
        threads: CPU threads for the network; 0 leaves the choice to OpenVINO.

    Raises:
        ModuleNotFoundError: without openvino; the message names the extra.
        MissingWeights: without the weights; the message names the fetch command.
    """

    def __init__(self, *, truncation: float = 0.7, drift: float = 0.25, threads: int = 0):
        self.folder, self.truncation, self.drift, self.threads = catalogue.folder("facegen"), truncation, drift, threads

    @cached_property
    def _networks(self):
        core = import_optional("openvino", "quickstart", why="The face generator").Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where a processor has it, and other images
        settings |= {"INFERENCE_NUM_THREADS": self.threads} if self.threads else {}
        return [
            core.compile_model(self.folder / f"{name}Network.xml", "CPU", settings) for name in ("Mapping", "Synthesis")
        ]

    def _style(self, entropy: Sequence[int]) -> np.ndarray:
        z = np.random.default_rng(list(entropy)).standard_normal((1, 512)).astype(np.float32)
        return self._networks[0]([z])[0]

    @cached_property
    def _mean(self) -> np.ndarray:
        return np.mean([self._style((0, n)) for n in range(_MEAN_SAMPLES)], axis=0)

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """uint8 (1024, 1024, 3), from `person` and `number` alone."""
        style = self._mean + self.truncation * (self._style((1, request.person)) - self._mean)
        style = style + self.drift * (self._style((2, request.person, request.number)) - self._mean)
        image = self._networks[1]([style])[0][0]  # (3, 1024, 1024) in [-1, 1]
        return ((image.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


facegen = FaceGenerator  # the name in configurations
