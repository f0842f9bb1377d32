"""Any text-to-image pipeline of diffusers with IP-Adapter, conditioned on a face photo."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from face2scene.common.choices import one_of
from face2scene.data.generators.base import GenerationRequest, GeneratorError, JobFailed
from face2scene.faces.align import square_crop_box
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import read_image, to_bytes


@dataclass(eq=False)
class IPAdapterPipeline:
    """Generates the person of a reference photo in a prompted scene."""

    pipeline: str | Path | None  # a folder in diffusers' layout, or a hub id
    adapter: str | Path | None  # a folder or hub id with IP-Adapter weights
    _: KW_ONLY
    weight_name: str  # the adapter's file, such as `ip-adapter-plus-face_sd15.safetensors`
    subfolder: str = ""  # of the weights in `adapter`
    image_encoder: str | None = "image_encoder"  # folder of the CLIP image encoder in `adapter`
    detector: Detector | None = None  # crops the face of the photo, for the face adapters; None takes the whole photo
    scale: float = 0.7  # of the adapter against the text
    width: int = 512
    height: int = 576
    guidance: float = 5.0
    steps: int = 30
    dtype: str = "float32"  # or `float16`, `bfloat16`
    device: str | None = None  # None takes the first accelerator of this rank, else the CPU
    options: Mapping[str, Any] = field(default_factory=dict)  # more of the call, such as `negative_prompt`

    def __post_init__(self) -> None:
        self.pipeline, self.adapter = str(self.pipeline or ""), str(self.adapter or "")
        one_of("data.diffusers_generator.dtype", self.dtype, ("float16", "bfloat16", "float32"))
        self.call = {"width": self.width, "height": self.height, "guidance_scale": self.guidance}
        self.call["num_inference_steps"] = self.steps

    def check(self) -> None:
        """Raises GeneratorError for a missing path; hub ids are not checked."""
        for option, name in (("pipeline", self.pipeline), ("adapter", self.adapter)):
            if not name:
                raise GeneratorError(f"generator.{option} is not set (data.{option}=...).")
            is_path = Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1
            if is_path and not Path(name).exists():
                raise GeneratorError(f"generator.{option}: there is no {name}.")

    def about(self) -> dict[str, Any]:
        """Settings for the records."""
        adapter = {"adapter": Path(self.adapter).name, "weights": self.weight_name, "scale": self.scale}
        return {"name": "diffusers", "pipeline": Path(self.pipeline).name, **adapter, **self.call}

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """uint8 (height, width, 3); see `base.Generator`. Noise is drawn on the CPU."""
        if request.reference is None:
            raise GeneratorError("IP-Adapter needs a reference photo of the person.")
        image = self._loaded(
            prompt=request.prompt,
            ip_adapter_image=self._face(request.reference),
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
            **self.call,
            **self.options,
        ).images[0]
        if not np.isfinite(image).all():
            raise JobFailed("the image holds NaN: try generator.dtype=float32")
        return to_bytes(image.astype(np.float32))

    def _face(self, reference: Path) -> Image.Image:
        photo = read_image(reference)
        if self.detector is not None:
            faces = self.detector.find(photo)
            if not faces:
                raise JobFailed(f"no face found on {reference.name}")
            x0, y0, x1, y1 = (int(v) for v in square_crop_box(faces[0].box, photo.shape[:2], margin=0.3))
            photo = photo[y0:y1, x0:x1]
        return Image.fromarray(to_bytes(photo))

    @cached_property
    def _loaded(self) -> Any:
        from accelerate import PartialState
        from diffusers import AutoPipelineForText2Image

        weights = {"subfolder": self.subfolder, "weight_name": self.weight_name}
        try:
            pipeline = AutoPipelineForText2Image.from_pretrained(
                self.pipeline, dtype=getattr(torch, self.dtype), trust_remote_code=False
            )
            pipeline.load_ip_adapter(self.adapter, **weights, image_encoder_folder=self.image_encoder)
        except (OSError, ValueError, RuntimeError) as error:
            raise GeneratorError(f"The pipeline {self.pipeline} with {self.adapter} does not load: {error}") from error
        pipeline.set_ip_adapter_scale(self.scale)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device or PartialState().device)
