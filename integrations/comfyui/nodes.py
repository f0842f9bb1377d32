"""Load Face2Scene's pipeline, and restore images with it.

ComfyUI's own modules are used where they are there: its device, its progress bar and its Cancel button.
"""

import json
from typing import Any

import torch
from torch import Tensor

from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.results import Restoration

try:
    import comfy.model_management as model_management
    from comfy.utils import ProgressBar
except ImportError:  # outside ComfyUI
    model_management = ProgressBar = None

NONE = "none"
STAGE_ONE = [NONE, "real_esrgan", "codeformer", "restoreformer", "faceme"]  # of configs/ref_fr, those for photos
DETECTORS = ["open", "open_arcface", "insightface", "facexlib", NONE]  # of configs/faces
CATEGORY = "image/restoration"


class LoadFace2Scene:
    """Load the weights, Stage I and the detector."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("FACE2SCENE",)
    RETURN_NAMES = ("pipeline",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        weights = {"default": "photo", "tooltip": "photo, tiny, a folder of save_pretrained, or OWNER/NAME of a hub"}
        return {
            "required": {
                "weights": ("STRING", weights),
                "stage_one": (STAGE_ONE, {"default": NONE, "tooltip": "restores the face; faceme needs references"}),
                "detector": (DETECTORS, {"default": "open"}),
            }
        }

    def load(self, weights: str, stage_one: str, detector: str) -> tuple[Face2ScenePipeline]:
        named = {"ref_fr": stage_one, "detector": detector}
        options = {key: None if name == NONE else name for key, name in named.items()}
        pipeline = Face2ScenePipeline.from_pretrained(weights, **options)
        return (pipeline.to(model_management.get_torch_device() if model_management else "cpu"),)


class RestoreWithFace2Scene:
    """Restore every image of a batch."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("restored", "degraded_face", "restored_face", "log")
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        guidance = {"default": 0.0, "min": 0.0, "max": 1.3, "step": 0.01, "tooltip": "0: the weights' own"}
        fidelity = {"default": -1.0, "min": -1.0, "max": 1.0, "step": 0.05, "tooltip": "-1: estimated; 1: the input"}
        return {
            "required": {
                "pipeline": ("FACE2SCENE",),
                "image": ("IMAGE",),
                "guidance": ("FLOAT", guidance),
                "fidelity": ("FLOAT", fidelity),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
            },
            "optional": {
                "person_1": ("IMAGE", {"tooltip": "clean photos of one person"}),
                "person_2": ("IMAGE", {"tooltip": "clean photos of another person"}),
            },
        }

    def restore(
        self,
        pipeline: Face2ScenePipeline,
        image: Tensor,
        guidance: float,
        fidelity: float,
        seed: int,
        person_1: Tensor | None = None,
        person_2: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, str]:
        people = {"person 1": person_1, "person 2": person_2}
        references = {name: list(_channels_first(of)) for name, of in people.items() if of is not None} or None
        results = [
            self._one(pipeline, one, references, guidance=guidance or None, fidelity=fidelity, seed=seed)
            for one in _channels_first(image)
        ]
        pair = next((result.estimate.pair for result in results if result.estimate.pair), None)
        faces = (pair.degraded, pair.restored) if pair else (torch.zeros(3, 1, 1),) * 2
        log = json.dumps([result.notes for result in results], indent=1, default=str)
        return torch.stack([_channels_last(result.image) for result in results]), *map(_batch, faces), log

    @staticmethod
    def _one(
        pipeline: Face2ScenePipeline, image: Tensor, references: Any, *, fidelity: float, **options: Any
    ) -> Restoration:
        bar = ProgressBar(1) if ProgressBar else None

        def progress(stage: str, done: int, total: int) -> None:
            if bar is not None:
                model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(done, max(total, 1))

        result = pipeline(image, references, progress=progress, **options)
        return result if fidelity < 0 else result.at_fidelity(fidelity)


def _channels_first(images: Tensor) -> Tensor:
    """(B, H, W, C) in [0, 1] as (B, 3, H, W) on the CPU; a fourth channel is left out."""
    return images[..., :3].movedim(-1, 1).float().cpu().clamp(0, 1).contiguous()


def _channels_last(image: Tensor) -> Tensor:
    return image.float().cpu().movedim(0, -1).contiguous()


def _batch(image: Tensor) -> Tensor:
    return _channels_last(image)[None]


NODE_CLASS_MAPPINGS = {"LoadFace2Scene": LoadFace2Scene, "RestoreWithFace2Scene": RestoreWithFace2Scene}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadFace2Scene": "Load Face2Scene",
    "RestoreWithFace2Scene": "Face2Scene Restore",
}
