"""FaDeX training: one phase, contrastive (supplement 2.1)."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from face2scene.common.choices import one_of
from face2scene.common.files import write_json
from face2scene.common.reproducibility import seed_from
from face2scene.data.face_pair_batches import FacePairBatches
from face2scene.models.fadex.cosine_probe import compare, embed_all
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.fadex.moco import EMPTY, MoCo
from face2scene.models.fadex.projection_head import pooled, retrain_projection_head
from face2scene.models.fadex.visualize import cosine_map, neighbour_sheet, pair_sheet
from face2scene.train.ema import EMA
from face2scene.train.loop import Phase

log = logging.getLogger(__name__)
_UNSEEN = 2**40  # first number of the batches that no training reaches


class FaDeXTask:
    """Trains a MoCo on face pairs, and probes it on held-out people.

    Args:
        moco: with the encoder to train.
        data: training pairs.
        held_out: pairs of other people, for the probe.
        lr, weight_decay: of AdamW (our setting; DASR uses Adam with 1e-3, then 1e-4).
        ema: decay of an EMA of the encoder's weights and statistics, which is then validated and exported; None keeps
            none. The key encoder is another one, with MoCo's own momentum.
        head: arguments of `models.fadex.projection_head.retrain_projection_head` for the exported encoder, with the
            number of `batches` of training pairs, their `crop`, and the `images` per operator and view; None exports
            the head as trained. Validation always uses that one.
        probe_on: recipes of the probe's main result: `presets` (d1 to d4, supplement 2.4) or `space` (operators drawn
            from the held-out space); the result of the other is inside it under its name.
        presets: recipes by name; may be empty.
        probe_operators, probe_images: number of operators drawn from the space, and of images per operator.
        seed: of the probe's draws.
        about: written into the weights' header.

    Raises:
        ValueError: one step has more keys than the queue, or `probe_on` has no recipes.
    """

    def __init__(
        self,
        moco: MoCo,
        data: FacePairBatches,
        held_out: FacePairBatches,
        accelerator: Accelerator,
        *,
        lr: float,
        weight_decay: float = 0.0,
        ema: float | None = None,
        head: Mapping[str, float] | None = None,
        probe_on: str = "presets",
        presets: Mapping[str, Any] | None = None,
        probe_operators: int = 12,
        probe_images: int = 10,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ):
        self.accelerator = accelerator
        self.data = data
        self.held_out = held_out
        self.about = dict(about or {})
        batches = accelerator.gradient_accumulation_steps * accelerator.num_processes
        enqueued, size = data.operators * data.images * batches, len(moco.queue.get_buffer("labels"))
        if enqueued > size:
            raise ValueError(
                f"One step enqueues {enqueued} keys and the queue holds {size}: raise "
                "fadex.contrast.queue_size, or lower train.fadex.operators, images or accumulate."
            )
        self.recipes: dict[str, dict[str, Any]] = {"space": {}, "presets": dict(presets or {})}
        rng = np.random.default_rng(seed_from(seed, "probe operators"))
        for number in range(probe_operators):
            self.recipes["space"][f"g{number + 1}"] = held_out.space.draw(rng)
        one_of("train.fadex.probe_on", probe_on, ("presets", "space"))
        if not self.recipes[probe_on]:
            raise ValueError(f"train.fadex.probe_on is {probe_on!r}, which has no recipes.")
        self.probe_on, self.probe_images, self.seed = probe_on, probe_images, seed
        self.head = dict(head or {})
        self._grids: dict[str, tuple[Tensor, Tensor]] = {}

        weights = [p for p in moco.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
        self.phases = [Phase("fadex", moco, optimizer, self.losses)]
        if accelerator.num_processes > 1:
            moco.gather = self._gather
        self._fresh: list[tuple[Tensor, Tensor]] = []  # keys and labels since the last optimizer step
        self._accuracy = torch.zeros(())
        self.stateful = [] if ema is None else [EMA(moco.query, ema, buffers=True)]
        count = sum(p.numel() for p in weights)
        log.info("FaDeX trains %d weights on %d images.", count, len(data.boxes))

    @property
    def moco(self) -> MoCo:
        return self.accelerator.unwrap_model(self.phases[0].model)

    @property
    def encoder(self) -> FaDeX:
        return self.moco.query

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The contrastive degradation loss of one batch of `FacePairBatches`."""
        contrast = self.phases[0].model(
            (batch["query_restored"], batch["query_degraded"]),
            (batch["key_restored"], batch["key_degraded"]),
            batch["labels"],
        )
        self._fresh.append((contrast.keys, contrast.labels))
        self._accuracy = contrast.accuracy()
        return {"contrast": self.moco.loss(contrast)}

    def after_step(self) -> None:
        """Enqueue the step's keys, those of all processes in one order, and update the EMA."""
        keys, labels = (torch.cat(parts) for parts in zip(*self._fresh, strict=True))
        self._fresh.clear()
        self.moco.update(keys, labels)
        for average in self.stateful:
            average.update()

    def _gather(self, keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Batch sizes may differ between processes: all are padded to the largest, without asking for their sizes.
        missing = self.data.operators * self.data.images - len(labels)
        return self.accelerator.gather((F.pad(keys, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=EMPTY)))

    @contextmanager
    def eval_weights(self) -> Iterator[FaDeX]:
        """The encoder with the weights to validate and export: the EMA's, if there is one."""
        with self.stateful[0].average_parameters() if self.stateful else nullcontext():
            yield self.encoder

    def validate(self) -> dict[str, float]:
        """The probe on held-out people, and the last training batch's accuracy."""
        result = self.probe(self.probe_on)
        values = {
            "fadex/batch_accuracy": float(self._accuracy),
            "validation/same": result["same_mean"],
            "validation/different": result["different_mean"],
            "validation/retrieval_top1": result["retrieval_top1"],
        }
        values |= {f"validation/same/{name}": value for name, value in result["same"].items()}
        if len(result["same"]) < 6:
            values |= {f"validation/cross/{name}": value for name, value in result["cross"].items()}
        return values

    def probe(self, on: str, encoder: FaDeX | None = None) -> dict[str, Any]:
        """`cosine_probe.compare` on held-out images and `presets` or `space`; by default of the trained encoder."""
        return compare(self._embedded(on, encoder)[2], list(self.recipes[on])) | {"people": self.held_out.people}

    def images(self) -> dict[str, np.ndarray]:
        """The probe's pairs, their cosines and their nearest neighbours."""
        restored, degraded, embeddings = self._embedded(self.probe_on)
        return {
            "pairs": pair_sheet(restored, degraded),
            "cosines": cosine_map(embeddings),
            "neighbours": neighbour_sheet(degraded, embeddings),
        }

    def count(self, batch: dict[str, Tensor]) -> int:
        """Faces in a batch, queries and keys."""
        return 2 * len(batch["labels"])

    def _embedded(self, on: str, encoder: FaDeX | None = None) -> tuple[Tensor, Tensor, Tensor]:
        # restored, degraded: (O, P, 3, c, c) of O operators and P images; embeddings: (O, P, D)
        if on not in self._grids:
            recipes = list(self.recipes[on].values())
            self._grids[on] = self.held_out.grid(recipes, self.probe_images, seed=self.seed)
        restored, degraded = (t.to(self.accelerator.device) for t in self._grids[on])
        with self.eval_weights() if encoder is None else nullcontext(encoder) as chosen:
            return restored, degraded, embed_all(chosen, restored, degraded)

    def _with_retrained_head(self, encoder: FaDeX) -> FaDeX:
        settings: dict[str, Any] = dict(self.head)
        batches, crop, images = (int(settings.pop(name)) for name in ("batches", "crop", "images"))
        data = self.data.at(crop, images)
        encoder = copy.deepcopy(encoder).eval()
        rows: list[Tensor] = []
        for number in tqdm(range(batches), desc="pairs for the head", unit="batch", disable=batches < 10):
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in data[_UNSEEN + number].items()}
            views = [pooled(encoder, batch[f"{v}_restored"], batch[f"{v}_degraded"]) for v in ("query", "key")]
            rows.append(torch.cat([view.unflatten(0, (-1, images)) for view in views], dim=1))  # (O, 2P, C)
        return retrain_projection_head(encoder, torch.cat(rows), seed=seed_from(self.seed, "head"), **settings)

    def export(self, folder: Path, step: int) -> None:
        """Write fadex.safetensors and probe.json."""
        with self.eval_weights() as encoder:
            exported = self._with_retrained_head(encoder) if self.head else copy.deepcopy(encoder)
        exported.save(folder / "fadex.safetensors", about=self.about | {"steps": step})
        result = self.probe(self.probe_on, exported)
        for other in self.recipes:
            if other != self.probe_on and self.recipes[other]:
                result[other] = self.probe(other, exported)
        write_json(folder / "probe.json", result)
        log.info("Held-out cosines: same %.3f, different %.3f.", result["same_mean"], result["different_mean"])
