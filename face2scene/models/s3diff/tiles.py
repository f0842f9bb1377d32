"""S3Diff over tiles of an image: whole runs of the model, because every layer depends on the image's scores."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from face2scene.common.types import Box, Progress
from face2scene.models.restorer.tiling import TilePlan, network_in_tiles


def restore_whole_tiles(
    restore: Callable[[Tensor, Tensor | None], Tensor],
    score_net: nn.Module,
    image: Tensor,
    plan: TilePlan,
    *,
    device: torch.device | str,
    progress: Progress | None,
) -> Tensor:
    """Restore each tile with the scores of the whole image, so that tiles differ in their statistics alone.

    Args:
        restore: a tile (1, 3, h, w) and scores (1, 2), or None where there is one tile, to (1, 3, h, w).
        score_net: measures squares that stand for the image, see `strata`.
        image: (1, 3, H, W), padded to the plan.
    """
    scores = None
    if len(plan.boxes) > 1:
        squares = plan.squares(image)
        parts = torch.cat([image[..., y0:y1, x0:x1] for x0, y0, x1, y1 in (square.box for square in squares)])
        shares = torch.tensor([[square.share] for square in squares], device=device)
        with torch.inference_mode():
            scores = (score_net(parts.to(device)) * shares).sum(0, keepdim=True)

    def work(part: Tensor, boxes: list[Box]) -> Tensor:
        return restore(part, scores)

    return network_in_tiles("restoring", nn.Identity(), work, image, plan, device, progress)
