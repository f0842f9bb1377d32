"""A sweep of configs/sweep as a grid of Weights & Biases: one training a variant, started by `wandb agent`."""

from collections.abc import Mapping, Sequence
from typing import Any

from face2scene.eval.sweeps.plan import COMMANDS, TRAININGS, Sweep, SweepError

# what a training logs, and which way is better
METRICS = {"fadex": ("validation/retrieval_top1", "maximize"), "restorer": ("validation/lpips_own_tokens", "minimize")}


def wandb_grid(sweep: Sweep, common: Sequence[str], use: Mapping[str, str | None]) -> dict[str, Any]:
    """The content of a file for `wandb sweep`; an agent adds `variant=SWEEP/LABEL` to the command.

    Args:
        common: overrides for every training.
        use: as for `plan`; a restorer is trained with `use["fadex"]`.

    Raises:
        SweepError: the variants differ in no training, and only trainings are tracked.
    """
    kinds = [kind for kind in TRAININGS if any(variant.overrides.get(kind) for variant in sweep.variants)]
    if not kinds:
        raise SweepError(f"The variants of sweep={sweep.key} differ in no training, and wandb tracks trainings alone.")
    kind = kinds[-1]
    labels = [variant.label for variant in sweep.variants if variant.overrides.get(kind)]
    weights = [f"fadex_weights={use['fadex']}"] if kind == "restorer" and use.get("fadex") else []
    tracker = ["tracker=wandb", "tracker.mode=online"]
    return {
        "name": sweep.title,
        "description": sweep.source,
        "program": "face2scene",
        "method": "grid",
        "metric": dict(zip(("name", "goal"), METRICS[kind], strict=True)),
        "parameters": {"variant": {"values": [f"{sweep.key}/{label}" for label in labels]}},
        "command": ["${env}", "${program}", COMMANDS[kind], *common, *weights, *tracker, "${args_no_hyphens}"],
    }
