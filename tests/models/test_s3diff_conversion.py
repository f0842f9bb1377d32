"""S3Diff's released files: names, shapes and block numbers at full size, and files that are not those."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from s3diff_reference import BLOCKS, place_by_hand, released, released_scores
from torch import nn

from face2scene.assets import convert
from face2scene.assets.catalogue import WeightsError
from face2scene.common.model_files import load_weights
from face2scene.models.restorer.random_base import SD_TURBO, networks
from face2scene.models.s3diff import modulation
from face2scene.models.s3diff.degradation_scores import ScoreNet
from face2scene.models.s3diff.model import S3Diff


def full_size_networks() -> tuple[nn.Module, nn.Module]:
    vae, unet, _ = networks(SD_TURBO)
    return vae.requires_grad_(False), unet.requires_grad_(False)


def test_released_files_fit_full_size(tmp_path):
    """Released names of 31 and 257 layers at ranks 16 and 32, converted, against our model's on the meta device."""
    with init_empty_weights():
        vae, unet = full_size_networks()
        base = SimpleNamespace(
            vae=vae,
            unet=unet,
            encode_prompts=lambda prompts: torch.zeros(len(prompts), 77, 1024),
            alphas=torch.ones(1000),
            prediction="epsilon",
            clip=None,
        )
        model = S3Diff(base, ScoreNet())
        networks = full_size_networks()
    content = released(*networks, {"vae": 16, "unet": 32})
    for part in ("state_dict_vae", "state_dict_unet"):  # a small file will do
        content[part] = {n: torch.zeros(1).expand(t.shape) for n, t in content[part].items()}
    torch.save(content, tmp_path / "s3diff.pkl")
    torch.save(released_scores(), tmp_path / "de_net.pth")
    convert._s3diff(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["de_net.safetensors", "s3diff.safetensors"]
    tensors, config, _ = load_weights(tmp_path / "s3diff.safetensors", kind="s3diff")
    assert (len(config["vae_layers"]), len(config["unet_layers"])) == (31, 257)
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in model._stored().items()}
    assert (set(config["vae_layers"]), set(config["unet_layers"])) == (set(model.vae_layers), set(model.unet_layers))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 3) == 34.475  # 33.923 M and two modulations
    assert sum(p.numel() for p in ScoreNet.from_file(tmp_path / "de_net.safetensors").parameters()) == 2_351_362
    with pytest.raises(ValueError, match="holds 's3diff', not 'restorer'"):
        load_weights(tmp_path / "s3diff.safetensors", kind="restorer")


def test_full_size_block_numbers_match():
    with init_empty_weights():
        vae, unet = full_size_networks()
    for net, network, number, kind in (
        ("vae", vae.encoder, modulation.vae_block, "encoder."),
        ("unet", unet, modulation.unet_block, ""),
    ):
        names = [kind + n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert all(number(name) == place_by_hand(net, name) % BLOCKS[net] for name in names)
        assert {number(name) for name in names} == set(range(BLOCKS[net]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("state_dict_vae_fuse_mlp"), "has no 'state_dict_vae_fuse_mlp'"),
        (lambda c: c["state_dict_unet"].pop("conv_in.bias"), "has no 'conv_in.bias'"),
        (
            lambda c: c["state_dict_vae"].pop("encoder.conv_in.lora_B.vae_skip.weight"),
            r"has no 'encoder.conv_in.lora_B.default.weight'",
        ),
        (lambda c: c.update(rank_unet=8), r"state_dict_unet holds '.*lora_A.*no LoRA factor of rank 8"),
        (lambda c: c.update(epoch=3), "holds 'epoch', which is not part"),
        (
            lambda c: c["state_embeddings"].update(state_dict_unet_block={"weight": torch.zeros(9, 64)}),
            r"'weight' of state_dict_unet_block is \(9, 64\) instead of \(10, 64\)",
        ),
    ],
)
def test_malformed_pickle_names_key(released_files, tmp_path, spoil, message):
    content = {k: dict(v) if isinstance(v, dict) else v for k, v in released_files[0].items()}
    spoil(content)
    torch.save(content, tmp_path / "s3diff.pkl")
    torch.save(released_files[1], tmp_path / "de_net.pth")
    with pytest.raises(WeightsError, match=message):
        convert.convert_s3diff(tmp_path / "s3diff.pkl", tmp_path / "de_net.pth", tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_pickle_with_code_is_rejected(released_files, tmp_path):
    torch.save({"w": print}, tmp_path / "s3diff.pkl")
    with pytest.raises(WeightsError, match="not a torch pickle of plain tensors"):
        convert.convert_s3diff(tmp_path / "s3diff.pkl", tmp_path / "none.pth", tmp_path / "o.safetensors")
    state = released_files[1] | {"body.1.8.conv2.bias": torch.zeros(64)}
    torch.save(state, tmp_path / "de_net.pth")
    with pytest.raises(WeightsError, match=r"'body.1.8.conv2.bias' of it is \(64,\) instead of \(128,\)"):
        convert._s3diff(tmp_path)
