"""Face2Scene from end to end: a degraded photo and other photos of the people become a restored photo.

    scene -> faces -> the face restored (Stage I) -> FaDeX -> MapNet's tokens -> the scene restored (Stage II)

    pipeline = Face2ScenePipeline.from_pretrained("checkpoints/tiny", detector=..., ref_fr=...).to("cuda")
    result = pipeline("party.jpg", references={"Ann": "photos/ann", "Bob": ["bob1.jpg", "bob2.jpg"]})
    result.save("party_restored.jpg")

`estimate` is the first half, `restore` the second, and calling the pipeline is both.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from face2scene.common.memory import peak_memory
from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box, Progress, Scene
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import align_colour, to_tensor
from face2scene.image_io.photos import MAX_PIXELS, Photo
from face2scene.inference import pretrained
from face2scene.inference.degradation_estimator import DegradationEstimator, PipelineOptions, no_progress
from face2scene.inference.inputs import ImageInput, References, as_photo, enlarged, name_of
from face2scene.inference.results import DegradationEstimate, Restoration
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import load_restorer
from face2scene.models.restorer.base_model import precision
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.tiling import TilePlan
from face2scene.models.s3diff.model import S3Diff
from face2scene.ref_fr import RefFR

log = logging.getLogger(__name__)


class Face2ScenePipeline:
    """The method, for inference.

    Args:
        restorer: Stage II; its LoRAs are merged here. An S3Diff takes no tokens: it measures the image itself.
        fadex: the degradation encoder.
        ref_fr: Stage I; None restores every scene without a face pair.
        detector: finds faces; None also leads to the fallback, unless a box is given.
        options: fields of `estimate.PipelineOptions`.
    """

    def __init__(
        self,
        restorer: OneStepRestorer | S3Diff,
        fadex: FaDeX,
        *,
        ref_fr: RefFR | None = None,
        detector: Detector | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ):
        self.restorer, self.fadex = restorer.merged(), fadex.eval()
        self.options = PipelineOptions(**options)
        self.estimator = DegradationEstimator(
            self.restorer, self.fadex, ref_fr, detector, self.options, self._first_pass
        )
        self.enable_tiling(self.options.tile, self.options.overlap, self.options.statistics)
        self._references = References()
        self._offloaded = False
        self.to(device)

    @classmethod
    def from_files(
        cls,
        restorer: str | Path,
        fadex: str | Path,
        *,
        base: str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "Face2ScenePipeline":
        """Load the two weights files.

        Args:
            base: the base model, where it is not where the restorer's header says.
            dtype: of the VAE and the UNet, also as `bf16`, `fp16` or `fp32`; None is float32, or a merged file's own.
                FaDeX, MapNet and Stage I keep theirs.
            options: of the constructor.
        """
        pipeline = cls(load_restorer(restorer, source=base), FaDeX.from_file(fadex), **options)
        pipeline.files = (Path(restorer), Path(fadex))
        return pipeline if dtype is None else pipeline.to(precision(dtype))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "Face2ScenePipeline":
        """Load a folder of `save_pretrained`, `checkpoints/tiny`, or a hub repository with these files.

        Args:
            folder: a path, also relative to the checkout, or a hub id OWNER/NAME.
            options: of the constructor and of `from_files`; they win over those that were saved. Stage I (`ref_fr`)
                and the detector are never saved: their weights belong to others.

        Raises:
            FileNotFoundError: nothing there; the message says what was looked for.
            ValueError: weights of another kind, corrupt, or an option that does not exist.
        """
        folder = pretrained.find(folder)
        options = pretrained.read_options(folder) | options
        return cls.from_files(folder / pretrained.RESTORER, folder / pretrained.FADEX, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the merged restorer with its base, FaDeX, the options and a model card; `from_pretrained` reads them.

        Stage I and the detector are named in the card and not written.
        """
        options = asdict(self.options)
        pretrained.write(folder, self.restorer, self.fadex, options, ref_fr=self.ref_fr, detector=self.detector)

    files: tuple[Path, ...] = ()  # where the weights came from

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights, to tell whether an image was restored by the same."""
        return pretrained.fingerprint(self.files, self.restorer, self.fadex)

    @property
    def ref_fr(self) -> RefFR | None:
        """Stage I."""
        return self.estimator.ref_fr

    @ref_fr.setter
    def ref_fr(self, ref_fr: RefFR | None) -> None:
        self.estimator.ref_fr = ref_fr

    @property
    def detector(self) -> Detector | None:
        """What finds faces."""
        return self.estimator.detector

    @detector.setter
    def detector(self, detector: Detector | None) -> None:
        self.estimator.detector = detector

    # Where and how it runs

    def to(self, *where: str | torch.device | torch.dtype) -> "Face2ScenePipeline":
        """Move to a device, cast to a dtype, or both: `to("cuda")`, `to(torch.bfloat16)`, `to("cuda", torch.bfloat16)`.

        The dtype is that of the VAE and the UNet; FaDeX and MapNet stay in float32. Stage I stays where it is.
        """
        for one in where:
            if isinstance(one, torch.dtype):
                pretrained.cast(self.restorer, one)
            else:
                self.device, self._offloaded = torch.device(one), False
                self.restorer.to(self.device)
                self.fadex.to(self.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the VAE and the UNet."""
        return self.restorer.unet.time_embedding.linear_1.weight.dtype

    def enable_tiling(
        self, tile: int | str | None = 512, overlap: int = 64, statistics: str = "shared"
    ) -> "Face2ScenePipeline":
        """Restore images that are larger than `tile` in tiles, see `restorer.tiling`."""
        TilePlan.of((1, 1), self.restorer, tile=tile, overlap=overlap, statistics=statistics)  # refuses what cannot be
        self.options = replace(self.options, tile=tile, overlap=overlap, statistics=statistics)
        return self

    def disable_tiling(self) -> "Face2ScenePipeline":
        """Restore every image whole; memory then grows with the image."""
        return self.enable_tiling(None)

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> "Face2ScenePipeline":
        """Keep the VAE and the UNet on the CPU and each on `device` only while it works; undone by `to(device)`."""
        self.to(device)
        self._offloaded = True
        for network in (self.restorer.vae, self.restorer.unet):
            network.to("cpu")
        return self

    # The road

    def __call__(
        self,
        image: Scene | ImageInput | Sequence[Scene | ImageInput],
        references: Any = None,
        *,
        name: str | None = None,
        scale: float = 1.0,
        gt: Tensor | None = None,
        box: Box | None = None,
        seed: int = 0,
        guidance: float | None = None,
        progress: Progress = no_progress,
        max_pixels: int = MAX_PIXELS,
    ) -> Restoration | list[Restoration]:
        """Restore one image, or each of a list.

        Args:
            image: a path, a PIL image, an array, a tensor or a `Scene` (see `inputs`), or a list of them.
            references: photos of the people in it, see `inputs.References`; for a list, of all its images.
            name: of the image; with `seed` it decides all randomness. None is the file's stem, or a digest of the
                pixels, so that neither order nor company changes a result.
            scale: see `images.output_size`.
            gt, box: see `estimate`; of a single image.
            guidance: see `restore`.
            progress: called with a stage's name, how much of it is done, and of how much; an exception raised there
                stops the work.

        Returns:
            One `Restoration`, or a list of them in order.
        """
        if isinstance(image, list | tuple):
            if name is not None or gt is not None or box is not None:
                raise ValueError("name, ground truth and box belong to one image: restore them one at a time.")
            shared = {"scale": scale, "seed": seed, "guidance": guidance, "max_pixels": max_pixels}
            return [self(one, references, progress=progress, **shared) for one in image]
        scene, photo = self.scene(image, references, name=name, scale=scale, max_pixels=max_pixels)
        estimate = self.estimate(scene, gt=gt, box=box, seed=seed, progress=progress)
        return replace(self.restore(scene, estimate, guidance=guidance, seed=seed, progress=progress), photo=photo)

    def scene(
        self,
        image: Scene | ImageInput,
        references: Any = None,
        *,
        name: str | None = None,
        scale: float = 1.0,
        max_pixels: int = MAX_PIXELS,
    ) -> tuple[Scene, Photo | None]:
        """What `__call__` makes of its input: the scene at the size of its restoration, and what its file knew."""
        if isinstance(image, Scene):
            return (image if references is None else replace(image, people=self._references(references))), None
        photo = as_photo(image, max_pixels=max_pixels)
        name = name_of(image, photo) if name is None else name
        photo = enlarged(photo, scale)
        return Scene(name, to_tensor(photo.image), people=self._references(references)), photo

    def estimate(
        self,
        scene: Scene,
        *,
        gt: Tensor | None = None,
        box: Box | None = None,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> DegradationEstimate:
        """Faces, Stage I, FaDeX and MapNet.

        Args:
            gt: (3, H, W), the scene clean: only for stand-ins of Stage I that are made from it.
            box: the face, where it is known; the detector is then not asked.
            seed: with the scene's name, of Stage I's randomness.
        """
        return self.estimator.estimate(scene, gt=gt, box=box, seed=seed, progress=progress)

    def restore(
        self,
        scene: Scene,
        estimate: DegradationEstimate,
        *,
        guidance: float | None = None,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Restoration:
        """Stage II with given tokens, in tiles where the scene is larger than one.

        Args:
            guidance: lambda of classifier-free guidance; None is the restorer's own.
            seed: with the scene's name, of what the restorer draws, if it draws anything.
        """
        return next(self.restore_at(scene, estimate, [guidance], seed=seed, progress=progress))

    def restore_at(
        self,
        scene: Scene,
        estimate: DegradationEstimate,
        guidances: Sequence[float | None],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Iterator[Restoration]:
        """`restore` at several guidances one after the other; see `RestorerBase.restore_tiled` for what they share.

        The seconds of what is shared are counted to the first.
        """
        start = perf_counter()
        image = scene.image[None]
        tiles = {name: getattr(self.options, name) for name in ("tile", "overlap", "statistics")}
        plan = TilePlan.of(image.shape[-2:], self.restorer, **tiles)
        strengths = [self.restorer.guidance if guidance is None else guidance for guidance in guidances]
        outputs = self.restorer.restore_tiled(
            image,
            lambda box: estimate.tokens.near(box).to(self.device),
            plan,
            strengths,
            seed=seed_from(seed, scene.name),
            device=self.device,
            offload=self._offloaded,
            progress=None if progress is no_progress else progress,  # then a bar over the tiles is shown
        )
        for guidance, output in zip(strengths, outputs, strict=True):
            aligned = align_colour(output, image, self.options.colour)[0]
            notes = estimate.notes | {
                "width": image.shape[-1],
                "height": image.shape[-2],
                "tokens": estimate.tokens.source,
                "ref_fr": getattr(self.ref_fr, "name", "none"),
                "guidance": guidance,
                "tiles": plan.notes,
                "colour": self.options.colour,
                "seconds_restore": round(perf_counter() - start, 3),
                "peak_memory_mib": peak_memory(self.device) // 2**20,
            }
            yield Restoration(aligned, estimate, notes)
            start = perf_counter()

    def _first_pass(self, image: Tensor, tokens: Tensor) -> Tensor:
        plan = TilePlan.of(image.shape[-2:], self.restorer, tile=None)
        where = {"device": self.device, "offload": self._offloaded}
        return next(self.restorer.restore_tiled(image, lambda box: tokens, plan, [self.restorer.guidance], **where))
