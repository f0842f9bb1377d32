"""The pipeline of a composed configuration, for restoring, baselines, the web page and measurements."""

from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.inference.pipeline import Face2ScenePipeline


def device_of(cfg: DictConfig) -> torch.device:
    """The option `device`; null is cuda where there is one."""
    return torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def pipeline_of(cfg: DictConfig, device: torch.device | None = None) -> Face2ScenePipeline:
    """The pipeline of a configuration like restore.yaml, on its device.

    Args:
        device: None is `device_of(cfg)`.
    """
    device = device_of(cfg) if device is None else device
    torch.backends.cuda.matmul.allow_tf32 = True  # for the float32 UNet, as cuDNN does by itself
    pipeline = Face2ScenePipeline.from_files(
        cfg.restorer_weights,
        cfg.fadex_weights,
        estimator=cfg.estimator_weights,
        base=cfg.base,
        dtype=cfg.dtype,
        decoder=cfg.restorer.get("decoder"),
        ref_fr=instantiate(cfg.ref_fr) or None,
        detector=instantiate(cfg.faces) or None,
        **cast(dict[str, Any], OmegaConf.to_container(cfg.pipeline, resolve=True)),
    )
    return pipeline.enable_model_cpu_offload(device) if cfg.offload else pipeline.to(device)
