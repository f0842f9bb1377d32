"""The base at inference is the one trained with, and its UNet is not rounded."""

import json
import logging
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from face2scene.common.reproducibility import REPOSITORY
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import amplification, load_base
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.random_base import SD_TURBO

pytestmark = pytest.mark.numerics


def build(base, **dtypes) -> OneStepRestorer:
    torch.manual_seed(0)
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    ranks = {"vae_rank": 2, "unet_rank": 2, "vae_layers": lora.VAE_ENCODER[:6]}
    return OneStepRestorer(load_base(base, **dtypes), mapnet, **ranks, source=str(base))


@pytest.fixture
def weights(tiny_base, tmp_path):
    """Weights trained on a bf16 VAE and a float32 UNet."""
    build(tiny_base, dtype="bf16", unet_dtype="fp32").save(tmp_path / "restorer.safetensors", about={})
    return tmp_path / "restorer.safetensors"


def dtypes(restorer: OneStepRestorer) -> tuple[torch.dtype, torch.dtype]:
    return restorer.vae_dtype, restorer.unet_dtype


def test_base_is_read_as_trained(weights, caplog):
    again = OneStepRestorer.from_file(weights)
    assert dtypes(again) == (torch.bfloat16, torch.float32)
    assert dtypes(again.merged()) == (torch.bfloat16, torch.float32)
    assert "another base" not in caplog.text


def test_another_base_warns_in_one_sentence(weights, tiny_base, tmp_path, caplog):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    file = next((other / "unet").glob("*.safetensors"))
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    caplog.set_level(logging.WARNING)
    OneStepRestorer.from_file(weights, source=other)
    (message,) = [r.getMessage() for r in caplog.records]
    assert f"was trained on another base than {other}: content=" in message
    caplog.clear()
    OneStepRestorer.from_file(weights, dtype="bf16")
    (message,) = [r.getMessage() for r in caplog.records]
    assert "unet_dtype=bf16 (trained: fp32)" in message and "content" not in message


def test_older_header_loads_in_float32(weights, caplog):
    with safe_open(weights, "pt") as file:
        header = file.metadata()
    config = json.loads(header["config"])
    del config["base"]
    save_file(load_file(weights), weights, metadata=header | {"config": json.dumps(config)})
    assert dtypes(OneStepRestorer.from_file(weights)) == (torch.float32, torch.float32)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("outer", [torch.bfloat16, torch.float16])
def test_float32_unet_is_not_rounded_by_autocast(tiny_base, outer):
    restorer = build(tiny_base, dtype="bf16", unet_dtype="fp32").eval()
    seen = []
    restorer.unet.mid_block.register_forward_hook(lambda _, inputs, output: seen.append(output))
    image, tokens = torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32)
    with torch.no_grad():
        restorer(image, tokens)
        with torch.autocast("cpu", outer):  # as mixed_precision does
            restorer(image, tokens)
    assert seen[0].dtype == seen[1].dtype == torch.float32
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)  # bf16 differs by 1e-2


def test_timestep_sweep_states_amplification():
    settings = SD_TURBO["scheduler"]
    betas = torch.linspace(settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    sweep = yaml.safe_load((REPOSITORY / "configs/sweep/timestep.yaml").read_text())
    for label, variant in sweep["variants"].items():
        (override,) = variant["restorer"]
        timestep = int(override.removeprefix("restorer.adapters.timestep="))
        factor = amplification(alphas[timestep].item(), "epsilon")
        assert label.endswith(f" {timestep} (x {factor:.3g})" if factor > 1 else f" {timestep} (x {factor:.2f})")
    assert [v["restorer"][0][-3:] for v in sweep["variants"].values()] == ["199", "200", "273", "999"]
    assert amplification(alphas[999].item(), "v_prediction") == pytest.approx(0.998, abs=1e-3)


def test_training_logs_amplification(tiny_base, caplog):
    caplog.set_level(logging.INFO)
    restorer = build(tiny_base)
    assert f"An error of the UNet's prediction is {amplification(restorer.alpha, 'epsilon'):.3g} times" in caplog.text
