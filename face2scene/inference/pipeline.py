"""Face2Scene from end to end: a degraded photo and other photos of the people become a restored photo.

    scene -> faces -> the face restored (Stage I) -> FaDeX -> MapNet's tokens -> the scene restored (Stage II)

    pipeline = Face2ScenePipeline.from_pretrained("photo", detector=..., ref_fr=...).to("cuda")
    result = pipeline("party.jpg", references={"Ann": "photos/ann", "Bob": ["bob1.jpg", "bob2.jpg"]})
    result.save("party_restored.jpg")

`estimate` is the first half, `restore` the second, and calling the pipeline is both.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, overload

import torch
from torch import Tensor

from face2scene.common.memory import peak_memory
from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box, Progress, Scene
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import align_colour, grey_where_grey, to_tensor
from face2scene.image_io.photos import Photo
from face2scene.inference import pretrained
from face2scene.inference.degradation_estimator import DegradationEstimator, PipelineOptions, no_progress
from face2scene.inference.inputs import ImageInput, References, as_photo, enlarged, name_of
from face2scene.inference.named_parts import with_parts
from face2scene.inference.results import DegradationEstimate, Restoration
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import load_restorer
from face2scene.models.restorer.base_model import precision
from face2scene.models.restorer.light_decoders import replace_decoder
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.tiling import TilePlan
from face2scene.models.s3diff.model import S3Diff
from face2scene.models.scene_estimator import SceneEstimator
from face2scene.ref_fr import RefFR

log = logging.getLogger(__name__)
UNTOUCHED = 0.98  # an estimated fidelity from here on returns the input itself


class Face2ScenePipeline(DegradationEstimator):
    """The method, for inference.

    Args:
        restorer: Stage II; its LoRAs are merged here. An S3Diff takes no tokens: it scores the image's degradation.
        fadex: the degradation encoder.
        ref_fr: Stage I, or its name in configs/ref_fr; without one every scene gets the fallback of `PipelineOptions`.
        detector: finds faces, or its name in configs/faces; without one also, unless a box is given.
        estimator: of the restorer, for images without a usable face and for `fidelity=auto`; None has neither.
        options: fields of `PipelineOptions`.
    """

    files: tuple[Path, ...] = ()  # the weights were loaded from these

    def __init__(
        self,
        restorer: OneStepRestorer | S3Diff,
        fadex: FaDeX,
        *,
        ref_fr: RefFR | str | None = None,
        detector: Detector | str | None = None,
        estimator: SceneEstimator | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ):
        parts = with_parts({"ref_fr": ref_fr, "detector": detector})
        super().__init__(
            restorer.merged(),
            fadex.eval(),
            parts["ref_fr"],
            parts["detector"],
            PipelineOptions(**options),
            estimator=estimator,
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
        estimator: str | Path | None = None,
        base: str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        decoder: str | Path | None = None,
        **options: Any,
    ) -> "Face2ScenePipeline":
        """Load the weights files.

        Args:
            estimator: None is `estimator.safetensors` beside the restorer, if it is there.
            base: the base model, if not the one that the restorer's header names.
            ref_fr, detector: see the constructor. With a `ref_fr` and without a word about the detector it is
                `faces=open`, as on the command line; None is none.
            dtype: of the VAE and the UNet, also as `bf16`, `fp16` or `fp32`; None is as they were trained (float32
                where an older header does not say), or a merged file's own. FaDeX, MapNet and Stage I keep theirs.
            decoder: a small decoder in place of the VAE's, see `light_decoders`.
            options: of the constructor.
        """
        options = with_parts(options)  # a wrong name is refused before anything is loaded
        if options.get("ref_fr") is not None:
            options.setdefault("detector", Detector(OpenBackend()))
        if estimator is None and (beside := Path(restorer).with_name(pretrained.ESTIMATOR)).is_file():
            estimator = beside
        loaded, files = load_restorer(restorer, source=base), [Path(restorer), Path(fadex)]
        if estimator is not None:
            files.append(Path(estimator))
        if decoder is not None:
            files.append(replace_decoder(loaded.vae, decoder))
        own = None if estimator is None else SceneEstimator.from_file(estimator)
        pipeline = cls(loaded, FaDeX.from_file(fadex), estimator=own, **options)
        pipeline.files = tuple(files)
        return pipeline if dtype is None else pipeline.to(precision(dtype))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "Face2ScenePipeline":
        """Load a folder of `save_pretrained`, the shipped `tiny`, or a hub repository with these files.

        Args:
            folder: a path, also relative to the checkout, or a hub id OWNER/NAME.
            options: of the constructor and of `from_files`; they override the saved ones. Stage I (`ref_fr`) and the
                detector are never saved: their weights belong to others.

        Raises:
            FileNotFoundError: no such folder or repository; the message names the files that are missing.
            ValueError: weights of another kind, corrupt, or an option that does not exist.
        """
        options = with_parts(options)
        folder = pretrained.find(folder)
        options = pretrained.read_options(folder) | options
        return cls.from_files(folder / pretrained.RESTORER, folder / pretrained.FADEX, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the merged restorer with its base, FaDeX, the options and a model card; `from_pretrained` reads them.

        The card names Stage I and the detector; they are not saved.
        """
        options = asdict(self.options)
        parts: dict[str, Any] = {"ref_fr": self.ref_fr, "detector": self.detector, "estimator": self.estimator}
        pretrained.write(folder, self.restorer, self.fadex, options, **parts)

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes, with the model card, to the hub repository `name` (OWNER/NAME).

        The repository is made where it does not exist. Returns the address of the upload; errors are huggingface_hub's.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            pretrained.name_card(folder, name)
            api.create_repo(name, private=private, exist_ok=True)
            message = "Upload a Face2Scene pipeline"
            return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights; images with the same one were restored by the same weights."""
        return pretrained.fingerprint(self.files, self.restorer, self.fadex, self.estimator)

    # Device, dtype and tiling

    def to(self, *where: str | torch.device | torch.dtype) -> "Face2ScenePipeline":
        """Move to a device, cast to a dtype, or both: `to("cuda")`, `to(torch.bfloat16)`, `to("cuda", torch.bfloat16)`.

        The dtype is that of the VAE and the UNet; FaDeX and MapNet stay in float32. Stage I stays where it is.
        """
        for one in where:
            if isinstance(one, torch.dtype):
                self.restorer.merged(one)
            else:
                self.device, self._offloaded = torch.device(one), False
                self.restorer.to(self.device)
                self.fadex.to(self.device)
                if self.estimator is not None:
                    self.estimator.to(self.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the VAE and the UNet."""
        return self.restorer.unet_dtype

    def enable_tiling(
        self, tile: int | str | None = 512, overlap: int = 64, statistics: str = "shared"
    ) -> "Face2ScenePipeline":
        """Restore images that are larger than `tile` in tiles, see `models.restorer.tiling`; None disables tiling."""
        TilePlan.of((1, 1), self.restorer, tile=tile, overlap=overlap, statistics=statistics)  # raises ValueError
        self.options = replace(self.options, tile=tile, overlap=overlap, statistics=statistics)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> "Face2ScenePipeline":
        """Keep the VAE and the UNet on the CPU and move each to `device` while it runs; undone by `to(device)`."""
        self.to(device)
        self._offloaded = True
        for network in (self.restorer.vae, self.restorer.unet):
            network.to("cpu")
        return self

    # Restoration

    @overload
    def __call__(self, image: Scene | ImageInput, references: Any = None, **options: Any) -> Restoration: ...

    @overload
    def __call__(
        self, image: list[Any] | tuple[Any, ...], references: Any = None, **options: Any
    ) -> list[Restoration]: ...

    def __call__(  # type: ignore[misc]  # whose options these are
        self,
        image: Scene | ImageInput | list[Any] | tuple[Any, ...],
        references: Any = None,
        *,
        name: str | None = None,
        scale: float = 1.0,
        gt: Tensor | None = None,
        box: Box | None = None,
        seed: int = 0,
        guidance: float | None = None,
        progress: Progress = no_progress,
        **reading: Any,
    ) -> Restoration | list[Restoration]:
        """Restore one image, or each of a list.

        Args:
            image: a path, a PIL image, an array, a tensor or a `Scene` (see `inputs`), or a list of them.
            references: photos of the people in it, see `inputs.References`; for a list, of all its images.
            name: of the image; with `seed` it determines all randomness. None is the file's stem, or a digest of the
                pixels, so that a result depends on neither the order nor the other images.
            scale: of the output's size, see `image_io.arrays.output_size`.
            gt, box: see `estimate`; for a single image.
            guidance: see `restore`.
            progress: called with (stage, done, total); an exception raised in it stops the restoration.
            reading: `max_pixels`, and the `development` of camera RAW, see `inputs.as_photo`.

        Returns:
            One `Restoration`, or a list of them in order.
        """
        if isinstance(image, list | tuple):
            if name is not None or gt is not None or box is not None:
                raise ValueError("name, ground truth and box belong to one image: restore them one at a time.")
            restore = partial(self, scale=scale, seed=seed, guidance=guidance, progress=progress, **reading)
            return [restore(one, references) for one in image]
        scene, photo = self.scene(image, references, name=name, scale=scale, **reading)
        estimate = self.estimate(scene, gt=gt, box=box, seed=seed, progress=progress)
        return self.restore(scene, estimate, guidance=guidance, seed=seed, progress=progress).of(photo)

    def scene(
        self,
        image: Scene | ImageInput,
        references: Any = None,
        *,
        name: str | None = None,
        scale: float = 1.0,
        **reading: Any,
    ) -> tuple[Scene, Photo | None]:
        """The input of `__call__` as a scene at the output's size, and the photo with its file's metadata."""
        if isinstance(image, Scene):
            return (image if references is None else replace(image, people=self._references(references))), None
        photo = as_photo(image, **reading)
        name = name_of(image, photo) if name is None else name
        photo = enlarged(photo, scale)
        return Scene(name, to_tensor(photo.image), people=self._references(references)), photo

    def restore(
        self,
        scene: Scene,
        estimate: DegradationEstimate,
        *,
        guidance: float | None = None,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Restoration:
        """Stage II with given tokens, in tiles if the scene is larger than one tile.

        Args:
            guidance: lambda of classifier-free guidance; None is the restorer's own.
            seed: with the scene's name, of the restorer's randomness, if it has any.
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
        """`restore` at several guidances in turn; what they share runs once and counts to the first's time."""
        start = perf_counter()
        image, options = scene.image[None], self.options
        height, width = image.shape[-2:]
        plan = TilePlan.of(
            (height, width), self.restorer, tile=options.tile, overlap=options.overlap, statistics=options.statistics
        )
        fidelity = self._fidelity(estimate)
        strengths = [self.restorer.guidance if guidance is None else guidance for guidance in guidances]
        untouched = options.fidelity == "auto" and fidelity >= UNTOUCHED
        outputs = (
            repeat(image, len(strengths))
            if untouched
            else self.restorer.restore_tiled(
                image,
                lambda box: estimate.tokens.near(box).to(self.device),
                plan,
                strengths,
                seed=seed_from(seed, scene.name),
                device=self.device,
                offload=self._offloaded,
                progress=None if progress is no_progress else progress,  # None shows a bar over the tiles
            )
        )
        for guidance, output in zip(strengths, outputs, strict=True):
            full = scene.image if untouched else grey_where_grey(align_colour(output, image, options.colour), image)[0]
            notes = estimate.notes | {
                "width": width,
                "height": height,
                "tokens": estimate.tokens.source,
                "ref_fr": getattr(self.ref_fr, "name", "none"),
                "guidance": guidance,
                "fidelity": 1.0 if untouched else round(fidelity, 4),
                "tiles": plan.notes,
                "colour": options.colour,
                "seconds_restore": round(perf_counter() - start, 3),
                "peak_memory_mib": peak_memory(self.device) // 2**20,
            }
            if untouched:
                notes["warnings"] = [
                    *notes["warnings"],
                    "The image is returned as it was: no degradation was estimated.",
                ]
            yield Restoration(full, estimate, notes, scene=scene.image).at_fidelity(notes["fidelity"])
            start = perf_counter()

    def _fidelity(self, estimate: DegradationEstimate) -> float:
        if self.options.fidelity != "auto":
            return float(self.options.fidelity)
        if self.estimator is None or estimate.tokens.source == "null" or not estimate.tokens.tokens.shape[1]:
            return 0.0
        with torch.inference_mode():
            return self.estimator.fidelity(estimate.tokens.tokens.mean(0, keepdim=True).to(self.device)).item()

    def restore_patch(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Restore (1, 3, h, w) in [0, 1] with tokens (1, N, D), untiled."""
        plan = TilePlan.of((image.shape[-2], image.shape[-1]), self.restorer, tile=None)
        outputs = self.restorer.restore_tiled(
            image, lambda _: tokens, plan, [self.restorer.guidance], device=self.device, offload=self._offloaded
        )
        return next(outputs)
