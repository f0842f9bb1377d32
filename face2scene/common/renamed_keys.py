"""Configuration keys of earlier versions: each is refused with its new name, wherever it comes from."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

# old key -> new key, as a user types them; a key stands for all keys below it, and * for any text
RENAMED = {
    # scripts/restore.py, run_baseline.py, app.py and eval.py
    "truth": "gt",
    "pipeline.tokens": "pipeline.token_aggregation",
    "pipeline.slack": "pipeline.identity_tolerance",
    "pipeline.most_faces": "pipeline.max_faces",
    "pipeline.largest_face": "pipeline.max_face_size",
    "pipeline.most_tokens": "pipeline.max_tokens",
    "cost.pictures": "cost.images",
    "probe.pictures": "probe.images",
    "probe.leak_pictures": "probe.nuisance_images",
    "shipped_probe": "shipped",
    # scripts/sweep.py
    "each.damage": "each.degradation",
    "sweep.variants.*.damage": "sweep.variants.*.degradation",
    # scripts/train_fadex.py
    "train.fadex.pictures": "train.fadex.images",
    "train.fadex.probe_pictures": "train.fadex.probe_images",
    "train.fadex.truth_share": "train.fadex.gt_share",
    "train.fadex.head.pictures": "train.fadex.head.images",
    "train.fadex.whiten": "train.fadex.head",
    # scripts/build_inscene.py
    "data.sources.archives.portion": "data.sources.archives.chunk_size",
    "data.sources.released.portion": "data.sources.released.chunk_size",
    # scripts/train_restorer.py
    "train.restorer.batches.negatives": "train.restorer.batches.negative_prob",
    "train.restorer.batches.dropped": "train.restorer.batches.token_dropout",
    "train.restorer.batches.truth_share": "train.restorer.batches.gt_share",
    "train.restorer.batches.truth_without_references": "train.restorer.batches.gt_without_references",
    "train.restorer.critic": "train.restorer.discriminator",
    "train.restorer.validation_pictures": "train.restorer.validation_images",
    # scripts/train_tiny_base.py
    "pictures": "images.faces.folder",
    "held_out": "images.faces.held_out",
    "tokenizer": "text",
    "latent_channels": "shape.latent_channels",
    "vae.channels": "shape.vae_channels",
    "denoiser.channels": "shape.unet_channels",
    "denoiser.heads": "shape.heads",
    **{f"{net}.{key}": key for net in ("vae", "denoiser") for key in ("crop", "batch", "schedule")},
    **{f"{net}.lr": "loss.lr" for net in ("vae", "denoiser")},
}
# old key -> what to do without it
REMOVED = {
    "train.restorer.leaks": (
        "gradients of one phase never reach the weights of another; train.restorer.order=published is still S3Diff's "
        "order of steps"
    ),
    "train.restorer.batches.face_window": "a face crop has the face's own size, as in use",
    "train.restorer.batches.small_faces": "faces of all sizes are trained on",
    "train.fadex.side": "faces larger than a crop are reduced by whole numbers, see train.fadex.buckets",
    "prompts": "the tiny base is trained with MapNet's tokens in place of prompts",
    "denoiser.text_width": "the text encoder in `text` decides it",
    **{f"{net}.damaged": "every image is degraded by the space `degradation`" for net in ("vae", "denoiser")},
}


class RenamedKey(ValueError):
    """Configuration keys of an earlier version; the message holds the new names."""


def refuse_renamed(overrides: Iterable[str], *, source: str = "the command line") -> None:
    """Refuse keys of an earlier version.

    Args:
        overrides: dotted keys, or Hydra's overrides such as `+a.b=1`.
        source: where they come from, for the message.

    Raises:
        RenamedKey: names every such key with its new name, or says why there is none.
    """
    found: dict[str, None] = {}
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")
        found |= {f"{old} is now {new}": None for old, new in RENAMED.items() if fnmatchcase(f"{key}.", f"{old}.*")}
        found |= {f"{old} is gone ({why})": None for old, why in REMOVED.items() if fnmatchcase(f"{key}.", f"{old}.*")}
    if found:
        raise RenamedKey(f"Keys of {source} have changed: {'; '.join(found)}.")


def with_new_names(options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Stored options with keys of an earlier version under their new names.

    Args:
        prefix: the key that they lie below in the configuration, such as `pipeline`.
    """
    return {RENAMED.get(f"{prefix}.{key}", key).removeprefix(f"{prefix}."): value for key, value in options.items()}


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of nested mappings, for `refuse_renamed`."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(value, Mapping) and value:
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
