"""The pipeline of a composed configuration, for restoring, baselines, the web page and measurements."""

import logging
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.assets import catalogue
from face2scene.assets.catalogue import MissingWeights, WeightsError
from face2scene.cli.config_text import key_of
from face2scene.common.memory import best_device, named_device
from face2scene.image_io.raw import Development
from face2scene.inference.pipeline import Face2ScenePipeline

log = logging.getLogger(__name__)
_NO_FACES = (
    "Faces are not looked for: this restoration needs none. To restore by a face: pip install 'face2scene[faces]', "
    "face2scene fetch yunet dlib real_esrgan_x4plus, and the option --ref-fr real_esrgan."
)


def named_keys() -> set[str]:
    """First parts of the keys that were given on the command line; these must work or fail, only defaults fall back."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {key_of(word).partition(".")[0] for word in words}


def device_of(cfg: DictConfig, default: torch.device | None = None) -> torch.device:
    """The option `device`; null is `default`, else `best_device`.

    Raises:
        ValueError: no such device here.
    """
    return default or best_device() if cfg.device is None else named_device(cfg.device)


def development_of(cfg: DictConfig) -> Development:
    """The options `develop` of camera RAW."""
    return Development(**cast(dict[str, Any], OmegaConf.to_container(cfg.develop, resolve=True)))


def best_ref_fr() -> str:
    """The best Stage I for photos whose weights are here, as an option of ref_fr; `none` without a detector's."""
    ready = {name for name, asset in catalogue.catalogue().items() if catalogue.is_ready(asset)}
    if not ready >= {"yunet", "dlib"}:
        return "none"
    if torch.cuda.is_available() and ready >= {"faceme", "realvisxl_v3", "photomaker", "antelopev2"}:
        return "faceme"
    return "real_esrgan" if "real_esrgan_x4plus" in ready else "none"


def pipeline_of(cfg: DictConfig, device: torch.device | None = None) -> Face2ScenePipeline:
    """The pipeline of a configuration like restore.yaml, on its device.

    A detector that was not named on the command line and that no Stage I needs is left out where it does not work: the
    log says how to get it, or, where references are given, the pipeline's `warnings` what it lacks.

    Args:
        device: None is `device_of(cfg)`.
    """
    device = device_of(cfg) if device is None else device
    ref_fr, detector = instantiate(cfg.ref_fr) or None, instantiate(cfg.faces) or None
    warnings: tuple[str, ...] = ()
    if detector is not None and ref_fr is None and "faces" not in named_keys():
        try:
            detector.ready()
        except (MissingWeights, WeightsError, ModuleNotFoundError) as error:
            detector = None
            if cfg.references is None:
                log.info(_NO_FACES)
            else:
                warnings = (f"Faces were not looked for: {error}",)
    torch.backends.cuda.matmul.allow_tf32 = True  # for the float32 UNet, as cuDNN does by itself
    pipeline = Face2ScenePipeline.from_files(
        cfg.restorer_weights,
        cfg.fadex_weights,
        estimator=cfg.estimator_weights,
        base=cfg.base,
        dtype=cfg.dtype,
        decoder=cfg.restorer.get("decoder"),
        ref_fr=ref_fr,
        detector=detector,
        **cast(dict[str, Any], OmegaConf.to_container(cfg.pipeline, resolve=True)),
    )
    pipeline.warnings = warnings
    return pipeline.enable_model_cpu_offload(device) if cfg.offload else pipeline.to(device)
