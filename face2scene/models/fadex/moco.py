"""Momentum contrast with several positives (supplement 2.1, figure 4).

Shapes: B queries, N keys of the same step, K keys in the queue, D width of an embedding.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from face2scene.models.fadex.encoder import FaDeX

EMPTY = -1  # the label of a slot that was never filled


@dataclass(frozen=True, eq=False)
class Contrast:
    """Logits of queries against keys, with masks of positives and negatives."""

    logits: Tensor  # (B, N + K) cosines over the temperature, float32
    positive: Tensor  # (B, N + K) bool: same operator, same step
    negative: Tensor  # (B, N + K) bool: another operator, of this step or of the queue
    keys: Tensor  # (N, D), of all processes, for `MoCo.update`
    labels: Tensor  # (N,)

    def loss(self, *, mean_over_positives: bool = False) -> Tensor:
        """Mean over queries of the sum over positives p of -log( exp(l_p) / sum over a of exp(l_a) ).

        a runs over the query's positives and negatives.

        Args:
            mean_over_positives: divide each query's sum by its number of positives, the factor 1/|P| of supervised
                contrastive learning, which the paper's formula lacks.
        """
        partners = self.positive | self.negative
        log_sum = self.logits.masked_fill(~partners, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
        sums = ((log_sum - self.logits) * self.positive).sum(1)
        if mean_over_positives:
            sums = sums / self.positive.sum(1)
        return sums.mean()

    def accuracy(self) -> Tensor:
        """Share of queries whose nearest key, among positives and negatives, is a positive."""
        best = self.logits.masked_fill(~(self.positive | self.negative), -torch.inf).argmax(1, keepdim=True)
        return self.positive.gather(1, best).float().mean()


class KeyQueue(nn.Module):
    """The newest `size` keys and the labels of their operators, a ring buffer."""

    keys: Tensor  # (K, D)
    labels: Tensor  # (K,) int64
    cursor: Tensor  # () int64, the next slot

    def __init__(self, size: int, width: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"A queue needs at least one slot, not {size}: raise fadex.contrast.queue_size.")
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("labels", torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Store (N, D) keys with their (N,) labels; any N up to the size. Those labelled EMPTY pad a batch.

        Raises:
            ValueError: more keys than slots.
        """
        size, count = len(self.keys), len(keys)
        if count > size:
            raise ValueError(
                f"{count} keys of one step do not fit a queue of {size}: raise fadex.contrast.queue_size, or "
                "lower train.fadex.operators, train.fadex.images, train.fadex.accumulate or the processes."
            )
        slots = (self.cursor + torch.arange(count, device=keys.device)) % size
        real = labels != EMPTY
        order = real.logical_not().byte().argsort(stable=True)  # padding last: the next step overwrites it
        self.keys[slots] = keys[order].to(self.keys.dtype)
        self.labels[slots] = labels[order]
        self.cursor.copy_((self.cursor + real.sum()) % size)


class MoCo(nn.Module):
    """Contrastive learning in which positives are different faces degraded by one operator.

    `forward` changes only the running statistics of batch norms, in training mode; key encoder and queue change only in
    `update`, once per optimiser step.

    Args:
        encoder: the query encoder; the key encoder starts as its copy.
        queue_size: keys kept as negatives. Not stated in the paper; DASR 8192, MoCo 65536.
        momentum: of the key encoder (MoCo and DASR 0.999).
        temperature: of the softmax (MoCo and DASR 0.07).
        mean_over_positives: see `Contrast.loss`.
    """

    # The key encoder has no gradients, but training resumes from its state.
    state_beside_training = ("key.",)

    def __init__(
        self,
        encoder: FaDeX,
        *,
        queue_size: int = 8192,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mean_over_positives: bool = False,
    ):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"fadex.contrast.momentum must lie in [0, 1), not {momentum}.")
        if temperature <= 0:
            raise ValueError(f"fadex.contrast.temperature must be above 0, not {temperature}.")
        self.query = encoder
        self.key = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = KeyQueue(queue_size, encoder.config["embedding"])
        self.momentum, self.temperature = momentum, temperature
        self.mean_over_positives = mean_over_positives
        # Gathers (keys, labels) of all processes, in the same order on each; set by distributed training.
        self.gather: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def forward(self, query_pair: tuple[Tensor, Tensor], key_pair: tuple[Tensor, Tensor], labels: Tensor) -> Contrast:
        """Compare the queries with the keys of this step, of all processes, and of the queue.

        Args:
            query_pair, key_pair: (restored, degraded), each (B, 3, H, W) in [0, 1]; row i of both was degraded by the
                same operator, and no face appears twice under one operator.
            labels: (B,) int64, one per operator, two or more of them.
        """
        queries = self.query.embed(self.query(*query_pair))  # (B, D)
        with torch.no_grad():
            keys, recent_labels = self.key.embed(self.key(*key_pair)), labels  # (N, D), (N,)
            if self.gather is not None:
                keys, recent_labels = self.gather(keys, labels)
        # Concatenation copies, so `update` does not change tensors that a backward pass needs.
        all_keys = torch.cat([keys, self.queue.keys])  # (N + K, D)
        all_labels = torch.cat([recent_labels, self.queue.labels])
        same = labels[:, None] == all_labels[None, :]
        recent = torch.arange(len(all_labels), device=labels.device) < len(keys)
        # A queued key of the same operator is no negative; positives come from the batch alone (supplement).
        negative = ~same & (all_labels != EMPTY)
        with torch.autocast(queries.device.type, enabled=False):
            logits = queries @ all_keys.T / self.temperature
        return Contrast(logits, same & recent, negative, keys, recent_labels)

    def loss(self, contrast: Contrast) -> Tensor:
        """The contrastive degradation loss with this module's settings."""
        return contrast.loss(mean_over_positives=self.mean_over_positives)

    @torch.no_grad()
    def update(self, keys: Tensor, labels: Tensor) -> None:
        """After an optimiser step: update the key encoder and enqueue the step's keys.

        Args:
            keys, labels: of every accumulated batch of every process, in the same order on each process.
        """
        for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)
        self.queue.enqueue(keys, labels)
