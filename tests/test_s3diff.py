"""S3Diff against its released computation, written out here with plain tensors from the released tensors' names."""

import math
import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene import converters
from face2scene.checkpoints import load_weights
from face2scene.restorer import modulation
from face2scene.restorer.backbone import load_base
from face2scene.restorer.latent_tiles import in_latent_tiles
from face2scene.restorer.load import load_restorer
from face2scene.restorer.s3diff import S3Diff
from face2scene.restorer.score_net import ScoreNet
from face2scene.runs import REPOSITORY
from face2scene.train import tiny_base as make_base
from face2scene.weights import WeightsError

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


# --- a small base of SD-Turbo's structure, and released files of random numbers for it ----------------------


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Four resolutions in both networks, attention in the VAE, SD-Turbo's schedule."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
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
    make_base.tiny_text_encoder(text_width=32).save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(REPOSITORY / "checkpoints/tiny/base/tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
    for k in range(2):  # scores far from 0 and 1, where all pictures look alike
        state[f"fc_degree.{k}.2.weight"] *= 0.5
        state[f"fc_degree.{k}.2.bias"] *= 0
    return state


@pytest.fixture(scope="module")
def files(base_folder, tmp_path_factory):
    """(pickle's content, de_net's content, the converted file)."""
    folder = tmp_path_factory.mktemp("released")
    base = load_base(base_folder)
    content, scores = released(base.vae, base.unet, RANKS), released_scores()
    torch.save(content, folder / "s3diff.pkl")
    torch.save(scores, folder / "de_net.pth")
    converters.convert_s3diff(
        folder / "s3diff.pkl", folder / "de_net.pth", folder / "s3diff.safetensors", source=str(base_folder)
    )
    return content, scores, folder / "s3diff.safetensors"


@pytest.fixture(scope="module")
def model(files):
    """Shared: tests that change it restore it, or read their own."""
    return S3Diff.from_file(files[2])


# --- the released computation, for one picture --------------------------------------------------------------


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
    """For one picture a modulated LoRA is a change of weights: W + s B M^T A."""
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


# --- the tests ----------------------------------------------------------------------------------------------


def test_scores_are_the_released_networks(model, files):
    image = torch.rand(1, 3, 37, 50)
    expected = scores_by_hand(files[1], image)
    torch.testing.assert_close(model.score_net(image).double(), expected, atol=1e-6, rtol=0)
    assert ((expected - 0.5).abs() > 0.05).all() and ((expected - 0.5).abs() < 0.45).all()


@pytest.fixture
def exact(model):
    """The shared model in double precision, where merged and modulated LoRAs differ by rounding alone."""
    yield model.double()
    model.float()


@pytest.mark.parametrize(("size", "scale"), [((64, 128), 1), ((15, 29), 4), ((70, 100), 1)])
def test_a_picture_is_restored_as_released(exact, files, base_folder, size, scale):
    content, scores, _ = files
    image = torch.rand(1, 3, *size)
    large = F.interpolate(image.double(), size=[side * scale for side in size], mode="bilinear")
    height, width = large.shape[-2:]
    padded = F.pad((large * 2 - 1).clamp(-1, 1), (0, -width % 64, 0, -height % 64), mode="reflect")
    torch.manual_seed(3)
    expected = by_hand(base_folder, content, scores_by_hand(scores, image), padded)[..., :height, :width] / 2 + 0.5
    torch.manual_seed(3)
    ours = exact.restore(image.double(), scale=scale)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.05 and ((expected > 0) & (expected < 1)).double().mean() > 0.5


def test_single_precision_is_as_near_as_rounding_lets_it(model, files, base_folder):
    image = torch.rand(1, 3, 64, 64)
    torch.manual_seed(3)
    expected = by_hand(base_folder, files[0], scores_by_hand(files[1], image), image * 2 - 1) / 2 + 0.5
    torch.manual_seed(3)
    torch.testing.assert_close(model.restore(image), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (13, 40), (8, 64), (24, 16)])
def test_a_large_latent_is_predicted_in_tiles_as_released(height, width):
    latent = torch.randn(2, 4, height, width)

    def work(part: Tensor) -> Tensor:
        return part.cumsum(-1) + part.cumsum(-2)  # depends on where the tile begins

    ours = in_latent_tiles(work, latent, tile=12, overlap=5)
    torch.testing.assert_close(ours, tiles_by_hand(work, latent, 12, 5), atol=1e-4, rtol=0)
    assert in_latent_tiles(work, latent[..., :12, :12], tile=12, overlap=5).equal(work(latent[..., :12, :12]))
    with pytest.raises(ValueError, match=r"13 x 4 is too narrow .*: lower latent_overlap"):
        in_latent_tiles(work, torch.randn(1, 4, 13, 4), tile=7, overlap=5)


def test_a_large_picture_is_restored_in_tiles(model, monkeypatch):
    image, calls = torch.rand(1, 3, 64, 128), []
    monkeypatch.setattr(model, "latent_tile", 8)
    monkeypatch.setattr(model, "latent_overlap", 0)
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[-2:]))
    model.restore(image)
    handle.remove()
    assert calls == [(8, 8)] * 4  # two tiles, two prompts


def test_a_half_precision_base_trains_in_single(files):
    model, image = S3Diff.from_file(files[2], dtype="bf16").unfreeze(), torch.rand(2, 3, 64, 64)
    assert model.unet.conv_out.base_layer.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    seeds = torch.tensor([7, 8])
    output = model(image, seeds=seeds)
    output.square().mean().backward()
    with torch.no_grad():
        assert torch.allclose(output[1:], model(image[1:], seeds=seeds[1:]), atol=0.05)  # a seed is the picture's own
    other = S3Diff.from_file(files[2])
    exact = other.restore(image, posterior="mean")
    half = model.restore(image, posterior="mean")
    assert (half - exact).abs().mean() < 0.05
    dtypes = [{n: p.dtype for n, p in each.named_parameters()} for each in (model, other.merged(torch.bfloat16))]
    assert dtypes[0] == dtypes[1] and torch.isfinite(other.restore(image)).all()


def test_every_picture_of_a_batch_has_its_own_matrices(exact):
    model, images = exact, torch.rand(2, 3, 64, 64).double()
    scores = torch.tensor([[0.2, 0.9], [0.7, 0.1]]).double()
    together = model.restore(images, posterior="mean", scores=scores)
    apart = [model.restore(i[None], posterior="mean", scores=s[None]) for i, s in zip(images, scores, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)
    swapped = model.restore(images, posterior="mean", scores=scores.flip(0))
    assert (swapped - together).abs().amax((1, 2, 3)).min() > 1e-2


def test_training_and_inference_without_guidance_are_one_computation(model):
    image = torch.rand(1, 3, 64, 64)
    torch.manual_seed(4)
    trained = model(image)
    torch.manual_seed(4)
    torch.testing.assert_close(trained, model.restore(image, guidance=1), atol=1e-6, rtol=0)
    torch.manual_seed(4)
    assert not torch.allclose(model(image, negative=torch.tensor([True])), trained, atol=1e-4)


def test_the_modulation_leaves_nothing_behind(model):
    image = torch.rand(1, 3, 64, 64)
    model.restore(image)
    with pytest.raises(ValueError, match="scores of 3 pictures were given for a batch of 1"):
        model.restore(image, scores=torch.rand(3, 2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("start", ["near_zero", "identity"])
def test_a_fresh_model_is_the_plain_base(base_folder, start):
    base = load_base(base_folder)
    model = S3Diff(load_base(base_folder), ScoreNet(), vae_rank=2, unet_rank=4, start=start)
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        for factor in (0, 1):  # B starts at zero; then with a B that says something
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(factor * 0.1)
            _, matrices = model.matrices(torch.rand(1, 2))
            ours = model._predict(latent, model.text[:1], matrices)
            theirs = base.unet(latent, 999, model.text[:1]).sample
            same = torch.allclose(ours, theirs, atol=1e-4)
            assert same == (factor == 0 or start == "near_zero")
    plain = model.unet(latent, 999, model.text[:1]).sample
    assert torch.allclose(ours, plain, atol=1e-4) == (start == "identity")


def test_gradients_reach_every_trained_weight_and_checkpointing_keeps_them(files):
    model = S3Diff.from_file(files[2]).unfreeze()
    image, gradients = torch.rand(2, 3, 64, 64), []
    for checkpointing in (False, True):
        if checkpointing:
            model.vae.enable_gradient_checkpointing()
            model.unet.enable_gradient_checkpointing()
        model.zero_grad()
        torch.manual_seed(5)
        (model(image, negative=torch.tensor([True, False])) - 0.3).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, again = gradients
    trained = {n for n, _ in model._own()} - {n for n, _ in model.named_buffers()}
    assert plain.keys() == {n for n in trained if not n.startswith("score_net.")}
    assert [n for n, g in plain.items() if g is None or not g.any()] == []
    assert all(torch.allclose(plain[n], again[n], atol=1e-6, rtol=1e-4) for n in plain)


def test_what_overflows_half_precision_is_computed_again_in_float32(files, caplog):
    model, image = S3Diff.from_file(files[2], dtype="bf16"), torch.rand(1, 3, 64, 64)
    narrow = model.vae.decoder.forward

    def overflowing(sample, *args, **kwargs):
        output = narrow(sample, *args, **kwargs)
        return output * float("inf") if sample.dtype == torch.bfloat16 else output

    model.vae.decoder.forward = overflowing
    output = model.restore(image, posterior="mean")
    assert "The VAE decoder gave values that are not finite; it is run again in float32." in caplog.text
    assert "UNet" not in caplog.text and torch.isfinite(output).all()
    assert model.vae.decoder.conv_in.weight.dtype == torch.bfloat16


def test_running_out_of_memory_names_the_options(model, monkeypatch):
    def exhaust(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.unet, "forward", exhaust)
    with pytest.raises(torch.OutOfMemoryError, match=r"lower pipeline\.tile, set guidance=1, or .*bf16"):
        model.restore(torch.rand(1, 3, 64, 64))


def test_a_seeded_sample_is_the_pictures_own(model):
    images, seeds = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    both = model.restore(images, seeds=seeds)
    torch.testing.assert_close(model.restore(images[1:], seeds=seeds[1:]), both[1:], atol=1e-3, rtol=0)


def test_saved_and_read_it_restores_the_same(model, tmp_path):
    model.save(tmp_path / "again.safetensors", about={"steps": 1})
    again = load_restorer(tmp_path / "again.safetensors")
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again.restore(image, posterior="mean"), model.restore(image, posterior="mean"))
    assert isinstance(again, S3Diff) and again.config == model.config
    model.save_pretrained(tmp_path / "folder", steps=1)
    assert S3Diff.from_pretrained(tmp_path / "folder").config == model.config
    model.save(tmp_path / "half.safetensors", about={}, dtype=torch.float16)
    tensors, _, _ = load_weights(tmp_path / "half.safetensors", kind="s3diff")
    small_parts = {t.dtype for n, t in tensors.items() if not n.startswith(("vae.", "unet."))}
    assert small_parts == {torch.float32} and tensors["unet.conv_in.bias"].dtype == torch.float16


def test_a_base_with_more_resolutions_is_refused(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "deep")
    make_base.tiny_unet(channels=[8] * 5, latent_channels=4, text_width=32, heads=2).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match=r"at most 4 resolutions .* has 5: set restorer\.base\.source"):
        S3Diff(load_base(folder), ScoreNet(), vae_layers=["encoder.*conv1"])


def test_the_schedules_bound_on_clean_latents_is_kept(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "bounded")
    DDPMScheduler(timestep_spacing="trailing", clip_sample=True, clip_sample_range=0.5).save_pretrained(
        folder / "scheduler"
    )
    model = S3Diff(load_base(folder), ScoreNet(), vae_rank=2, unet_rank=2)
    seen = []
    model.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.vae.post_quant_conv = nn.Identity()
    model.restore(torch.rand(1, 3, 64, 64))
    assert seen[0].abs().max() * 0.18215 == pytest.approx(0.5)


# --- full size ----------------------------------------------------------------------------------------------


def full_size() -> tuple[nn.Module, nn.Module]:
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
    )
    unet = UNet2DConditionModel(
        cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True
    )
    return vae.requires_grad_(False), unet.requires_grad_(False)


def test_the_released_files_fit_the_full_size_by_name_and_shape(tmp_path):
    """Released names of 31 and 257 layers at ranks 16 and 32, converted, against our model's on the meta device."""
    with init_empty_weights():
        vae, unet = full_size()
        base = SimpleNamespace(
            vae=vae,
            unet=unet,
            encode_prompts=lambda prompts: torch.zeros(len(prompts), 77, 1024),
            alphas=torch.ones(1000),
            prediction="epsilon",
            clip=None,
        )
        model = S3Diff(base, ScoreNet())
        networks = full_size()
    content = released(*networks, {"vae": 16, "unet": 32})
    for part in ("state_dict_vae", "state_dict_unet"):  # a small file will do
        content[part] = {n: torch.zeros(1).expand(t.shape) for n, t in content[part].items()}
    torch.save(content, tmp_path / "s3diff.pkl")
    torch.save(released_scores(), tmp_path / "de_net.pth")
    converters._s3diff(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["de_net.safetensors", "s3diff.safetensors"]
    tensors, config, _ = load_weights(tmp_path / "s3diff.safetensors", kind="s3diff")
    assert (len(config["vae_layers"]), len(config["unet_layers"])) == (31, 257)
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in model._own()}
    assert (set(config["vae_layers"]), set(config["unet_layers"])) == (set(model.vae_layers), set(model.unet_layers))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 3) == 34.475  # 33.923 M and two modulations
    assert sum(p.numel() for p in ScoreNet.from_file(tmp_path / "de_net.safetensors").parameters()) == 2_351_362
    with pytest.raises(ValueError, match="holds 's3diff', not 'restorer'"):
        load_weights(tmp_path / "s3diff.safetensors", kind="restorer")


def test_blocks_of_the_full_size_are_numbered_as_released():
    with init_empty_weights():
        vae, unet = full_size()
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
def test_a_wrong_pickle_says_which_key(files, tmp_path, spoil, message):
    content = {k: dict(v) if isinstance(v, dict) else v for k, v in files[0].items()}
    spoil(content)
    torch.save(content, tmp_path / "s3diff.pkl")
    torch.save(files[1], tmp_path / "de_net.pth")
    with pytest.raises(WeightsError, match=message):
        converters.convert_s3diff(tmp_path / "s3diff.pkl", tmp_path / "de_net.pth", tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_a_pickle_that_runs_code_is_refused(files, tmp_path):
    torch.save({"w": print}, tmp_path / "s3diff.pkl")
    with pytest.raises(WeightsError, match="not a torch pickle of plain tensors"):
        converters.convert_s3diff(tmp_path / "s3diff.pkl", tmp_path / "none.pth", tmp_path / "o.safetensors")
    state = files[1] | {"body.1.8.conv2.bias": torch.zeros(64)}
    torch.save(state, tmp_path / "de_net.pth")
    with pytest.raises(WeightsError, match=r"'body.1.8.conv2.bias' of it is \(64,\) instead of \(128,\)"):
        converters.convert_score_net(tmp_path / "de_net.pth", tmp_path / "o.safetensors")
