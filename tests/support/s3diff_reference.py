"""S3Diff's released computation, written out with plain tensors from the released tensors' names."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from tiny_text_encoder import tiny_text_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.assets import convert
from face2scene.common.reproducibility import REPOSITORY
from face2scene.models.restorer.base_model import load_base
from face2scene.models.s3diff.degradation_scores import ScoreNet

RANKS = {"vae": 2, "unet": 4}
# the released targets, as they stand in the pickle
VAE_TARGETS = r"^encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_k|to_q|to_v|to_out\.0)$"
UNET_TARGETS = (
    "to_k to_q to_v to_out.0 conv conv1 conv2 conv_shortcut conv_out proj_in proj_out ff.net.2 ff.net.0.proj".split()  # noqa: SIM905
)
PROMPTS = (
    "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting.",
    "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth",
)


def small(*shape: int) -> Tensor:
    return torch.randn(shape) / math.sqrt(math.prod(shape[1:]) or 1)


def released(vae: nn.Module, unet: nn.Module, ranks: dict[str, int]) -> dict:
    """What S3Diff's own saving writes, with random numbers; peft names the LoRAs."""
    torch.manual_seed(1)
    vae.add_adapter(LoraConfig(r=ranks["vae"], target_modules=VAE_TARGETS), adapter_name="vae_skip")
    unet.add_adapter(LoraConfig(r=ranks["unet"], target_modules=UNET_TARGETS))
    content = {
        "unet_lora_target_modules": UNET_TARGETS,
        "vae_lora_target_modules": VAE_TARGETS,
        "rank_unet": ranks["unet"],
        "rank_vae": ranks["vae"],
        "state_dict_unet": {k: small(*v.shape) for k, v in unet.state_dict().items() if "lora" in k or "conv_in" in k},
        "state_dict_vae": {k: small(*v.shape) for k, v in vae.state_dict().items() if "lora" in k},
        "w": nn.Parameter(torch.randn(64), requires_grad=False),
        "state_embeddings": {f"state_dict_{n}_block": nn.Embedding(k, 64).state_dict() for n, k in BLOCKS.items()},
    }
    for net, rank in ranks.items():
        content[f"state_dict_{net}_de_mlp"] = {"0.weight": small(256, 256), "0.bias": small(256)}
        content[f"state_dict_{net}_block_mlp"] = {"0.weight": small(64, 64), "0.bias": small(64)}
        # weak enough that the deep blocks are not drowned by what the first ones add
        content[f"state_dict_{net}_fuse_mlp"] = {"weight": 0.2 * small(rank**2, 320), "bias": 0.1 * small(rank**2)}
    return content


BLOCKS = {"vae": 6, "unet": 10}


def released_scores() -> dict[str, Tensor]:
    torch.manual_seed(2)
    names = {"conv_first": "first", "body": "body", "fc_degree": "head"}
    shapes = {name: tensor.shape for name, tensor in ScoreNet().state_dict().items()}
    back = {ours: theirs for theirs, ours in names.items()}
    state = {back[n.split(".")[0]] + n[n.index(".") :]: small(*s) for n, s in shapes.items()}
    for k in range(2):  # scores far from 0 and 1, where all images look alike
        state[f"fc_degree.{k}.2.weight"] *= 0.5
        state[f"fc_degree.{k}.2.bias"] *= 0
    return state


# --- the released computation, for one image --------------------------------------------------------------


def scores_by_hand(state: dict[str, Tensor], image: Tensor) -> Tensor:
    degrees, state, image = [], {n: t.double() for n, t in state.items()}, image.double()
    for k in range(2):

        def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
            return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, 1)

        x = conv(image, f"conv_first.{k}")
        for i in (0, 1, 2, 3, 4, 5, None, 7, 8):
            if i is None:
                x = conv(x, f"body.{k}.6", stride=2)
            else:
                x = x + conv(F.relu(conv(x, f"body.{k}.{i}.conv1")), f"body.{k}.{i}.conv2")
        x = F.adaptive_avg_pool2d(x, 1)[0, :, 0, 0]
        x = F.relu(state[f"fc_degree.{k}.0.weight"] @ x + state[f"fc_degree.{k}.0.bias"])
        degrees.append(torch.sigmoid(state[f"fc_degree.{k}.2.weight"] @ x + state[f"fc_degree.{k}.2.bias"]))
    return torch.stack(degrees, dim=1)


def matrices_by_hand(content: dict, net: str, scores: Tensor) -> list[Tensor]:
    blur, noise = ([value * w * 2 * math.pi for w in content["w"].tolist()] for value in scores[0].tolist())
    waves = [f(v) for values in (blur, noise) for f in (math.sin, math.cos) for v in values]

    def layer(part: str, x: Tensor, name: str = "0.") -> Tensor:
        state = content[f"state_dict_{net}_{part}_mlp"]
        return state[f"{name}weight"].double() @ x + state[f"{name}bias"].double()

    degradation = F.relu(layer("de", torch.tensor(waves, dtype=torch.float64)))
    table = content["state_embeddings"][f"state_dict_{net}_block"]["weight"].double()
    rank = content[f"rank_{net}"]
    return [
        layer("fuse", torch.cat([degradation, F.relu(layer("block", row))]), "").reshape(rank, rank) for row in table
    ]


def place_by_hand(net: str, name: str) -> int:
    """Which row of the block embedding a layer reads."""
    parts = name.split(".")
    if net == "vae":
        return int(parts[2]) if parts[1] == "down_blocks" else -2 if parts[1] == "mid_block" else -1
    if parts[0] == "down_blocks":
        return int(parts[1])
    return 4 if parts[0] == "mid_block" else int(parts[1]) + 5 if parts[0] == "up_blocks" else -1


def write_into(network: nn.Module, content: dict, net: str, adapter: str, scores: Tensor) -> None:
    """For one image a modulated LoRA is a change of weights: W + s B M^T A."""
    matrices = matrices_by_hand(content, net, scores)
    state = content[f"state_dict_{net}"]
    for name in [n.removesuffix(f".lora_A.{adapter}.weight") for n in state if ".lora_A." in n]:
        down, up = state[f"{name}.lora_A.{adapter}.weight"], state[f"{name}.lora_B.{adapter}.weight"]
        turned = up.double().flatten(1) @ matrices[place_by_hand(net, name)].T @ down.double().flatten(1)
        weight = network.get_submodule(name).weight
        weight.data += 8 / content[f"rank_{net}"] * turned.reshape(weight.shape)
    if net == "unet":
        network.conv_in.weight.data.copy_(state["conv_in.weight"])
        network.conv_in.bias.data.copy_(state["conv_in.bias"])


@torch.no_grad()
def by_hand(folder, content: dict, scores: Tensor, image: Tensor) -> Tensor:
    """`image` (1, 3, H, W) in [-1, 1], sides multiples of 64, as released inference computes it, in its precision."""
    base = load_base(folder, dtype=image.dtype)
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    schedule.set_timesteps(1)
    write_into(base.vae, content, "vae", "vae_skip", scores)
    write_into(base.unet, content, "unet", "default", scores)
    scaling = base.vae.config.scaling_factor
    latent = base.vae.encode(image).latent_dist.sample() * scaling
    positive, negative = (base.encode_prompts([prompt]).to(image) for prompt in PROMPTS)

    def guided(part: Tensor) -> Tensor:
        plus = base.unet(part, 999, encoder_hidden_states=positive).sample
        minus = base.unet(part, 999, encoder_hidden_states=negative).sample
        return minus + 1.07 * (plus - minus)

    prediction = guided(latent)
    clean = schedule.step(prediction, 999, latent).prev_sample
    return base.vae.decode(clean / scaling).sample.clamp(-1, 1)


def tiles_by_hand(work: Callable[[Tensor], Tensor], latent: Tensor, tile: int, overlap: int) -> Tensor:
    height, width = latent.shape[-2:]
    tile = min(tile, height, width)
    total, weights = torch.zeros_like(latent), torch.zeros_like(latent)

    def bell(x: int, middle: float) -> float:
        return math.exp(-((x - middle) ** 2) / tile**2 / (2 * 0.01)) / math.sqrt(2 * math.pi * 0.01)

    window = torch.tensor([[bell(y, tile / 2) * bell(x, (tile - 1) / 2) for x in range(tile)] for y in range(tile)])

    def offsets(length: int) -> list[int]:
        found, end = [], 0
        while end < length:
            found.append(len(found) * (tile - overlap))
            end = found[-1] + tile
        return [*found[:-1], length - tile]

    for x in offsets(width):
        for y in offsets(height):
            total[..., y : y + tile, x : x + tile] += work(latent[..., y : y + tile, x : x + tile]) * window
            weights[..., y : y + tile, x : x + tile] += window
    return total / weights


def write_base(folder: Path) -> Path:
    """A small base like SD-Turbo: four resolutions in both networks, attention in the VAE, its schedule."""
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        block_out_channels=[8, 16, 16, 16],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    tiny_text_encoder(text_width=32).save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(REPOSITORY / "checkpoints/tiny/base/tokenizer", folder / "tokenizer")
    return folder


def write_released(folder: Path, base_folder: Path) -> tuple[dict, dict[str, Tensor], Path]:
    """Released files of random numbers for a base: the pickle's content, de_net's content, the converted file."""
    base = load_base(base_folder)
    content, scores = released(base.vae, base.unet, RANKS), released_scores()
    torch.save(content, folder / "s3diff.pkl")
    torch.save(scores, folder / "de_net.pth")
    converted = folder / "s3diff.safetensors"
    convert.convert_s3diff(folder / "s3diff.pkl", folder / "de_net.pth", converted, source=str(base_folder))
    return content, scores, converted
