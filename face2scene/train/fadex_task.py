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
from tqdm import tqdm

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
_UNSEEN = 2**40  # batches from this number on are no training's


class FaDeXTask:
    """Trains a MoCo on face pairs, watches it on people it has not seen.

    Args:
        moco: with the encoder to train.
        data: training pairs.
        held_out: pairs of other people, for the probe.
        accelerator: of the training.
        lr, weight_decay: of AdamW (our setting; DASR uses Adam with 1e-3, then 1e-4).
        ema: decay of an average of the encoder's weights and statistics, which is then what is validated and exported;
            None keeps none. It is not the key encoder, which follows the contrast's own momentum.
        head: `batches` of training pairs of one `crop`, on `images` for the queries and for the keys, and the
            settings of `fadex.head.retrain_projection_head`, done to what is exported; None exports the head as it was
            trained. Validation shows it as it is trained.
        probe_on: what the probe's main result is about: `presets` (d1 to d4, supplement 2.4) or `space`
            (operators drawn from the held-out space); the other is written inside it under its own name.
        presets: recipes by name; may be empty.
        probe_operators, probe_images: size of the probe on the space, and its images.
        seed: of the probe's draws.
        about: written into the weights' header.

    Raises:
        ValueError: the queue is smaller than what one step enqueues.
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
        enqueued = data.operators * data.images * batches
        if enqueued > len(moco.queue.keys):
            raise ValueError(
                f"One step enqueues {enqueued} keys and the queue holds {len(moco.queue.keys)}: raise "
                "fadex.contrast.queue_size, or lower train.fadex.operators, images or accumulate."
            )
        self.recipes: dict[str, dict[str, Any]] = {"space": {}, "presets": dict(presets or {})}
        rng = np.random.default_rng(seed_from(seed, "probe operators"))
        for number in range(probe_operators):
            self.recipes["space"][f"g{number + 1}"] = held_out.space.draw(rng)
        if not self.recipes.get(probe_on):
            raise ValueError(f"train.fadex.probe_on must be presets or space, and name recipes; {probe_on!r} has none.")
        self.probe_on, self.probe_images, self.seed = probe_on, probe_images, seed
        self.head = dict(head or {})
        self._grids: dict[str, tuple[Tensor, Tensor]] = {}

        weights = [p for p in moco.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
        self.phases = [Phase("fadex", moco, optimizer, self.losses)]
        if accelerator.num_processes > 1:
            moco.gather = self._of_everyone
        self._fresh: list[tuple[Tensor, Tensor]] = []  # keys and labels since the last optimiser step
        self._accuracy = 0.0
        self.stateful: list[EMA] = []
        if ema is not None:
            self.stateful.append(EMA(moco.query, ema, buffers=True))
        count = sum(p.numel() for p in weights)
        log.info("FaDeX trains %d weights on %d images.", count, len(data.paths))

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
        """Every queue gets the step's keys, which are those of all processes in one order."""
        keys, labels = (torch.cat(parts) for parts in zip(*self._fresh, strict=True))
        self._fresh.clear()
        self.moco.update(keys, labels)
        for average in self.stateful:
            average.update()

    def _of_everyone(self, keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Processes may have batches of several sizes: they are filled up to one, and the filling is dropped again.
        keys = self.accelerator.pad_across_processes(keys.contiguous())
        labels = self.accelerator.pad_across_processes(labels, pad_index=EMPTY)
        keys, labels = self.accelerator.gather((keys, labels))
        return keys[labels != EMPTY], labels[labels != EMPTY]

    @contextmanager
    def eval_weights(self) -> Iterator[FaDeX]:
        """The encoder as it is validated and exported: its average, where one is kept."""
        with self.stateful[0].average_parameters() if self.stateful else nullcontext():
            yield self.encoder

    def validate(self) -> dict[str, float]:
        """The probe on held-out people, and the last training batch's accuracy."""
        found = self.probe(self.probe_on)
        return {
            "fadex/batch_accuracy": float(self._accuracy),
            "validation/same": found["same_mean"],
            "validation/different": found["different_mean"],
            "validation/retrieval_top1": found["retrieval_top1"],
            **{f"validation/same/{name}": value for name, value in found["same"].items()},
            **{f"validation/cross/{name}": value for name, value in found["cross"].items() if len(found["same"]) < 6},
        }

    def probe(self, on: str, encoder: FaDeX | None = None) -> dict[str, Any]:
        """`fadex.probe` on the held-out images with the `presets` or the `space`, of the encoder as it is shown."""
        return compare(self._embedded(on, encoder)[2], list(self.recipes[on])) | {"people": self.held_out.people}

    def images(self) -> dict[str, np.ndarray]:
        """What the probe saw: the pairs, their cosines and their nearest neighbours."""
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
        # Restored and degraded faces (O, P, 3, c, c) and their embeddings (O, P, D) by the encoder as it is now.
        if on not in self._grids:
            recipes = list(self.recipes[on].values())
            self._grids[on] = self.held_out.grid(recipes, self.probe_images, seed=self.seed)
        restored, degraded = (t.to(self.accelerator.device) for t in self._grids[on])
        if encoder is not None:
            return restored, degraded, embed_all(encoder, restored, degraded)
        with self.eval_weights() as own:
            return restored, degraded, embed_all(own, restored, degraded)

    def _with_retrained_head(self, encoder: FaDeX) -> FaDeX:
        settings = dict(self.head)
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
            shared = self._with_retrained_head(encoder) if self.head else copy.deepcopy(encoder)
        shared.save(folder / "fadex.safetensors", about=self.about | {"steps": step})
        found = self.probe(self.probe_on, shared)
        for other in self.recipes:
            if other != self.probe_on and self.recipes[other]:
                found[other] = self.probe(other, shared)
        write_json(folder / "probe.json", found)
        log.info("Held-out cosines: same %.3f, different %.3f.", found["same_mean"], found["different_mean"])
