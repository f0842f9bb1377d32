"""Any text-to-image pipeline of diffusers with IP-Adapter, in this process: a face photo conditions the image."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from face2scene.data.generators.base import GenerationRequest, GeneratorError, JobFailed
from face2scene.faces.align import square_crop_box
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import read_image, to_bytes


class IPAdapterPipeline:
    """Draws a person of a reference photo into a prompted scene.

    Args:
        pipeline: a folder in diffusers' layout, or a hub id.
        adapter: a folder or hub id with IP-Adapter weights.
        weight_name: the adapter's file, such as `ip-adapter-plus-face_sd15.safetensors`.
        subfolder, image_encoder: where in `adapter` the weights and the CLIP image encoder lie.
        detector: cuts the face out of the photo, as the face adapters were trained; None shows the whole photo.
        scale: of the adapter against the text.
        width, height, guidance, steps: of the pipeline; the sizes must suit it.
        negative_prompt: none, as in the paper's generator.
        dtype: `float32`, `float16` or `bfloat16`.
        device: None takes the first accelerator of this rank, else the CPU.
        options: more arguments of the pipeline's call.
    """

    def __init__(
        self,
        pipeline: str | Path | None,
        adapter: str | Path | None,
        *,
        weight_name: str,
        subfolder: str = "",
        image_encoder: str | None = "image_encoder",
        detector: Detector | None = None,
        scale: float = 0.7,
        width: int = 512,
        height: int = 576,
        guidance: float = 5.0,
        steps: int = 30,
        negative_prompt: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        options: dict[str, Any] | None = None,
    ):
        self.pipeline_name, self.adapter = str(pipeline or ""), str(adapter or "")
        self.weight_name, self.subfolder, self.image_encoder = weight_name, subfolder, image_encoder
        self.detector, self.scale, self.dtype, self.device = detector, scale, dtype, device
        self.call = {"width": width, "height": height, "guidance_scale": guidance, "num_inference_steps": steps}
        self.negative_prompt, self.options = negative_prompt, dict(options or {})
        self._pipeline: Any = None

    def check(self) -> None:
        """Raises GeneratorError for a path that looks like one and is not there."""
        for option, name in (("pipeline", self.pipeline_name), ("adapter", self.adapter)):
            if not name:
                raise GeneratorError(f"generator.{option} is not set (data.{option}=...).")
            is_path = Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1
            if is_path and not Path(name).exists():
                raise GeneratorError(f"generator.{option}: there is no {name}.")

    def about(self) -> dict[str, Any]:
        """For the records."""
        adapter = {"adapter": Path(self.adapter).name, "weights": self.weight_name, "scale": self.scale}
        return {"name": "diffusers", "pipeline": Path(self.pipeline_name).name, **adapter, **self.call}

    def draw(self, job: GenerationRequest) -> np.ndarray:
        """uint8 (height, width, 3); see `generators.Generator`. The seed is the job's, and drawn on the CPU."""
        if job.reference is None:
            raise GeneratorError("IP-Adapter draws a person from a photo, and this job has none.")
        made = self._loaded()(
            prompt=job.prompt,
            negative_prompt=self.negative_prompt,
            ip_adapter_image=self._face(job.reference),
            generator=torch.Generator().manual_seed(job.seed),
            output_type="np",
            **self.call,
            **self.options,
        ).images[0]
        if not np.isfinite(made).all():
            raise JobFailed("the image holds NaN: try generator.dtype=float32")
        return to_bytes(made.astype(np.float32))

    def _face(self, reference: Path) -> Image.Image:
        photo = read_image(reference)
        if self.detector is not None:
            faces = self.detector.find(photo)
            if not faces:
                raise JobFailed(f"no face found on {reference.name}")
            x0, y0, x1, y1 = (int(v) for v in square_crop_box(faces[0].box, photo.shape[:2], margin=0.3))
            photo = photo[y0:y1, x0:x1]
        return Image.fromarray(to_bytes(photo))

    def _loaded(self) -> Any:
        if self._pipeline is None:
            from accelerate import PartialState
            from diffusers import AutoPipelineForText2Image

            try:
                made = AutoPipelineForText2Image.from_pretrained(self.pipeline_name, dtype=getattr(torch, self.dtype))
                made.load_ip_adapter(
                    self.adapter,
                    subfolder=self.subfolder,
                    weight_name=self.weight_name,
                    image_encoder_folder=self.image_encoder,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise GeneratorError(
                    f"The pipeline {self.pipeline_name} with {self.adapter} does not load: {error}"
                ) from error
            made.set_ip_adapter_scale(self.scale)
            made.set_progress_bar_config(disable=True)
            self._pipeline = made.to(self.device or PartialState().device)
        return self._pipeline
