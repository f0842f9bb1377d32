"""FaceMe's weights: the released names and shapes are read, and what is not whole is refused."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_faceme import SDXL_UNET, SDXL_VAE, clip_layer, clip_text, text_config
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from face2scene.assets.catalogue import MissingWeights
from face2scene.eval.cost.complexity import SDXL
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.ref_fr.faceme import id_encoder, loading
from face2scene.ref_fr.faceme.id_encoder import IDEncoder, Mix, insert_tokens
from face2scene.ref_fr.faceme.model import FaceMe
from face2scene.ref_fr.faceme.references import Antelope
from face2scene.ref_fr.faceme.tiny import SDXL_SCHEDULE, WholeImage, tiny_parts

pytestmark = pytest.mark.usefixtures("faceme_parts_made_once")


class Released(WholeImage):
    """Stands in for antelopev2, whose files are there."""

    def files(self) -> list[Path]:
        return []


def write_half_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], *, random: bool = False) -> None:
    """A file of full size in half precision: random numbers, or holes, which take no room on the disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        block = (np.random.default_rng(0).standard_normal(1 << 24) * 0.02).astype(np.float16)
        for name, shape in shapes.items() if random else ():
            count = int(np.prod(shape))
            first = len(name) * 1009  # no two networks alike
            file.write(np.resize(block[first:], count).tobytes())
        file.truncate(8 + len(text) + offset)


def write_released_folder(
    folder: Path, kind: type, config: dict, change=lambda shapes: None, random: bool = False
) -> int:
    with torch.device("meta"):
        network = kind.from_config(config)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    change(shapes)
    write_half_safetensors(folder / "diffusion_pytorch_model.safetensors", shapes, random=random)
    network.save_config(folder)
    return count


SDXL_TEXT_ENCODERS = {  # kind, width, inner, layers, heads, activation, projection
    "text_encoder": (CLIPTextModel, 768, 3072, 12, 12, "quick_gelu", None),
    "text_encoder_2": (CLIPTextModelWithProjection, 1280, 5120, 32, 20, "gelu", 1280),
}


def process_memory_gib(kind: str) -> float:
    """GiB of this process: RssAnon now, or VmHWM, the most there ever was."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) / 2**20


def test_id_encoder_has_released_shapes():
    """The names are written out here, since a library may rename its own modules from one version to the next."""
    width = 1024
    shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "visual_projection.weight": (768, width),
        "visual_projection_2.weight": (1280, width),
    }
    shapes |= {
        f"vision_model.{n}.{s}": (width,) for n in ("pre_layrnorm", "post_layernorm") for s in ("weight", "bias")
    }
    for n in range(24):
        shapes |= clip_layer(f"vision_model.encoder.layers.{n}", width, 4096)
    with torch.device("meta"):
        encoder = IDEncoder()
    assert {name: tuple(t.shape) for name, t in encoder.state_dict().items()} == shapes
    assert encoder.config.hidden_act == "quick_gelu" and encoder.config.image_size == 224


def test_mix_has_released_shapes():
    shapes = {}
    for name, into, out in [
        ("pro_id.mlp1", 512, 1024),
        ("pro_id.mlp2", 1024, 1024),
        ("pro_id.mlp3", 1024, 2048),
        ("pro_id.mlp4", 2048, 2048),
        ("mlp1", 4096, 2048),
        ("mlp2", 2048, 2048),
    ]:
        shapes |= {f"{name}.layernorm.weight": (into,), f"{name}.layernorm.bias": (into,)}
        shapes |= {f"{name}.fc1.weight": (out, into), f"{name}.fc1.bias": (out,)}
        shapes |= {f"{name}.fc2.weight": (out, out), f"{name}.fc2.bias": (out,)}
    shapes |= {"norm1.weight": (2048,), "norm1.bias": (2048,)}
    with torch.device("meta"):
        assert {name: tuple(t.shape) for name, t in Mix().state_dict().items()} == shapes


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("kind", "activation", "projection"),
    [(CLIPTextModel, "quick_gelu", None), (CLIPTextModelWithProjection, "gelu", 16)],
)
def test_text_encoder_matches_clip_formula(tmp_path, kind, activation, projection):
    """Released names, and values of an independent CLIP implementation: the second-to-last layer, unnormalised."""
    width, layers = 16, 3
    w = {n: 0.3 * torch.randn(s) for n, s in clip_text(width, 32, layers, projection).items()}
    text_config(width, 32, layers, 2, activation).save_pretrained(tmp_path)
    save_file(w | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, tmp_path / "model.safetensors")
    encoder = loading.load_text_encoder(kind, tmp_path)
    ids = torch.tensor([[49406, 320, 1125, 539, 1710, 269, 49407, *[0] * 70]])

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["text_model.embeddings.token_embedding.weight"][ids] + w["text_model.embeddings.position_embedding.weight"]
    states = []
    for n in range(layers):
        name = f"text_model.encoder.layers.{n}"
        y = norm(x, f"{name}.layer_norm1")
        q, k, v = (linear(y, f"{name}.self_attn.{p}_proj").view(1, 77, 2, 8).transpose(1, 2) for p in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(1, 77, width)
        x = x + linear(y, f"{name}.self_attn.out_proj")
        y = linear(norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        y = F.gelu(y) if activation == "gelu" else y * torch.sigmoid(1.702 * y)
        x = x + linear(y, f"{name}.mlp.fc2")
        states.append(x)
    with torch.no_grad():
        output = encoder(ids, output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states[-2], states[-2], atol=2e-5, rtol=1e-5)
    if projection:
        pooled = norm(states[-1], "text_model.final_layer_norm")[:, 6] @ w["text_projection.weight"].T
        torch.testing.assert_close(output.text_embeds, pooled, atol=2e-5, rtol=1e-5)


def test_partial_text_encoder_is_refused(tmp_path):
    shapes = clip_text(16, 32, 2, None)
    text_config(16, 32, 2, 2, "gelu").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        loading.load_text_encoder(CLIPTextModel, tmp_path)
    del shapes["text_model.encoder.layers.1.mlp.fc1.weight"]
    shapes["text_model.final_layer_norm.bias"] = (4,)
    save_file({n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.fc1\.weight.*final_layer_norm\.bias \(4,\) for \(16,\)"
    ) as error:
        loading.load_text_encoder(CLIPTextModel, tmp_path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "config", "millions"),
    [
        (UNet2DConditionModel, SDXL_UNET, 2567.5),
        (ControlNetModel, SDXL, 1251.0),
        (AutoencoderKL, SDXL_VAE, 83.7),
    ],
)
def test_full_size_networks_are_accepted(tmp_path, kind, config, millions):
    assert write_released_folder(tmp_path, kind, config) / 1e6 == pytest.approx(millions, abs=0.1)
    loading.compare_headers(kind, tmp_path)


@pytest.mark.parametrize("name", SDXL_TEXT_ENCODERS)
def test_full_size_text_encoders_are_accepted(tmp_path, name, monkeypatch):
    kind, width, inner, layers, heads, activation, projection = SDXL_TEXT_ENCODERS[name]
    shapes = clip_text(width, inner, layers, projection)
    text_config(width, inner, layers, heads, activation).save_pretrained(tmp_path)
    write_half_safetensors(tmp_path / "model.safetensors", shapes)
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: torch.nn.Identity())
    loading.load_text_encoder(kind, tmp_path)
    assert (
        sum(int(np.prod(s)) for s in shapes.values()) == {"text_encoder": 123060480, "text_encoder_2": 694659840}[name]
    )


@pytest.mark.slow
def test_full_size_model_loads_and_runs(tmp_path, people, monkeypatch, capsys):
    """About 10 GB on the disk. Half-precision files are mapped: what is loaded takes little memory of its own."""
    import shutil
    import time

    from face2scene.common.reproducibility import REPOSITORY

    start = time.perf_counter()
    base = tmp_path / "base"
    write_released_folder(base / "unet", UNet2DConditionModel, SDXL_UNET, random=True)
    write_released_folder(base / "vae", AutoencoderKL, SDXL_VAE, random=True)
    write_released_folder(tmp_path / "controlnet", ControlNetModel, SDXL, random=True)
    for name, (_, width, inner, layers, heads, activation, projection) in SDXL_TEXT_ENCODERS.items():
        text_config(width, inner, layers, heads, activation).save_pretrained(base / name)
        write_half_safetensors(
            base / name / "model.safetensors", clip_text(width, inner, layers, projection), random=True
        )
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(REPOSITORY / "checkpoints/tiny/base/tokenizer", base / name)
    (base / "scheduler").mkdir()
    (base / "scheduler/scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULE))
    with torch.device("meta"):
        own, towers = Mix().state_dict(), IDEncoder().state_dict()
    write_half_safetensors(tmp_path / "mix.safetensors", {n: tuple(t.shape) for n, t in own.items()}, random=True)
    tower = {n: (torch.randn(t.shape) * 0.02).half() for n, t in towers.items()}
    torch.save({"id_encoder": tower, "lora_weights": {}}, tmp_path / "photomaker-v1.bin")
    del tower
    written = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) / 1e9
    times = {"write": time.perf_counter() - start}

    class Encoder(Released):
        def detect(self, image):
            face = super().detect(image)
            return replace(face, identity=np.resize(face.identity, 512) / 8)

    monkeypatch.setattr(loading, "Antelope", lambda folder: Encoder())
    start = time.perf_counter()
    model = FaceMe.released(
        base=str(base),
        controlnet=str(tmp_path / "controlnet"),
        mix=str(tmp_path / "mix.safetensors"),
        photomaker=str(tmp_path / "photomaker-v1.bin"),
        antelope=str(tmp_path),
        dtype="float16",
        vae_dtype="float16",
        size=64,
        device="cpu",
    )
    model.ready()
    times["load"] = time.perf_counter() - start
    loaded = {"RssAnon": process_memory_gib("RssAnon"), "peak": process_memory_gib("VmHWM")}
    parts = model.parts
    weight = parts.unet.state_dict()["mid_block.attentions.0.proj_in.weight"]
    with safe_open(base / "unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert torch.equal(weight, file.get_tensor("mid_block.attentions.0.proj_in.weight"))
    assert parts.prompt.positive.shape == (77, 2048) and parts.prompt.pooled.shape == (1280,)
    assert loaded["RssAnon"] < 5 and loaded["peak"] < 8  # GB; the first counts what was freed and is kept, too

    # one network at a time, so that no more than one is in memory
    start = time.perf_counter()
    with torch.inference_mode():
        tokens, _ = model.reference_tokens(people["ann"][:1])
        assert tokens.shape == (1, 2048) and torch.isfinite(tokens).all()
        prompts = insert_tokens(parts.prompt.positive, parts.prompt.place, tokens)[None].half()
        added = {
            "text_embeds": parts.prompt.pooled[None].half(),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).half(),
        }
        given = torch.randn(1, 4, 8, 8).half(), torch.tensor(981)
        down, middle = parts.controlnet(
            *given,
            encoder_hidden_states=prompts,
            controlnet_cond=torch.zeros(1, 3, 64, 64).half(),
            added_cond_kwargs=added,
            return_dict=False,
        )
        unet = parts.unet
        del parts, model
        out = unet(
            *given,
            encoder_hidden_states=prompts,
            added_cond_kwargs=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
    times["run"] = time.perf_counter() - start
    assert out.shape == (1, 4, 8, 8)
    with capsys.disabled():
        figures = {k: round(v, 1) for k, v in times.items()} | {k: round(v, 2) for k, v in loaded.items()}
        print(
            f"\n{written:.1f} GB written; seconds and GiB: {figures}; peak in all {process_memory_gib('VmHWM'):.2f} GiB"
        )


def test_partial_controlnet_is_refused(tmp_path):
    def spoil(shapes):
        del shapes["controlnet_mid_block.weight"]
        shapes["conv_in.weight"] = (320, 9, 3, 3)

    write_released_folder(tmp_path, ControlNetModel, SDXL, spoil)
    with pytest.raises(ValueError, match=r"controlnet_mid_block\.weight.*conv_in\.weight \(320, 9, 3, 3\)") as error:
        loading.load_network(ControlNetModel, tmp_path, "controlnet")
    assert "diffusion_pytorch_model.safetensors" in str(error.value)


def test_old_vae_attention_names_are_read(tmp_path):
    def age(shapes):
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            for side in ("encoder", "decoder"):
                for kind in ("weight", "bias"):
                    name = f"{side}.mid_block.attentions.0.{new}.{kind}"
                    shape = shapes.pop(name)
                    shapes[name.replace(new, old)] = (*shape, 1, 1) if kind == "weight" else shape

    write_released_folder(tmp_path, AutoencoderKL, SDXL_VAE, age)
    loading.compare_headers(AutoencoderKL, tmp_path)


def test_mix_loads_from_half_precision(tmp_path):
    mix = Mix()
    save_file({name: t.half() for name, t in mix.state_dict().items()}, tmp_path / "mix.safetensors")
    loaded = id_encoder.load_mix(tmp_path / "mix.safetensors", Mix())
    assert loaded(torch.randn(2, 2048), torch.randn(2, 512)).shape == (2, 2048)
    assert torch.equal(loaded.mlp1.fc1.weight, mix.mlp1.fc1.weight.half().float())


@pytest.mark.numerics
def test_released_layout_gives_same_face(tmp_path, faces, people, monkeypatch):
    """The released layout, written from the tiny networks and read by the loader that reads the real one."""
    parts = tiny_parts(5)
    base = tmp_path / "base"
    parts.unet.save_pretrained(base / "unet")
    parts.vae.save_pretrained(base / "vae")
    parts.controlnet.save_pretrained(tmp_path / "controlnet")
    for name in ("scheduler", "text_encoder", "text_encoder_2"):
        (base / name).mkdir()
    for name in ("text_encoder", "text_encoder_2"):  # `encode_prompts` below reads nothing
        (base / name / "config.json").touch()
    (base / "scheduler/scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULE))
    save_file(parts.mix.state_dict(), tmp_path / "mix.safetensors")
    torch.save({"id_encoder": parts.id_encoder.state_dict(), "lora_weights": {}}, tmp_path / "photomaker-v1.bin")
    monkeypatch.setattr(id_encoder, "Mix", lambda: Mix(32, 8))
    monkeypatch.setattr(id_encoder, "IDEncoder", lambda: tiny_parts(6).id_encoder)
    monkeypatch.setattr(loading, "encode_prompts", lambda found, **texts: parts.prompt)
    monkeypatch.setattr(loading, "Antelope", lambda folder: Released())
    options = {
        "base": str(base),
        "controlnet": str(tmp_path / "controlnet"),
        "mix": str(tmp_path / "mix.safetensors"),
        "photomaker": str(tmp_path / "photomaker-v1.bin"),
        "antelope": str(tmp_path),
    }
    settings = {"size": 64, "steps": 3, "device": "cpu"}
    result = FaceMe.released(**options, **settings).restore_aligned(faces[:1], [people["ann"]])[0].image
    known = FaceMe.tiny(weights_seed=5, **settings).restore_aligned(faces[:1], [people["ann"]])[0].image
    # a mapped file's weights lie elsewhere in memory, where a kernel may sum in another order; then 256 values are left
    assert (result - known).abs().max() < 1.01 / 255 and (result - known).abs().mean() < 1e-5
    monkeypatch.setattr(loading, "load_network", lambda *_: pytest.fail("weights are read before all files are found"))
    with pytest.raises(FileNotFoundError, match=r"There is no config.json in .*unet: ref_fr\.base"):
        FaceMe.released(**options | {"base": str(tmp_path)}, **settings)
    (tmp_path / "mix.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"ref_fr\.mix"):
        FaceMe.released(**options, **settings)


def test_missing_weights_name_fetch_command(monkeypatch, tmp_path):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="`face2scene fetch realvisxl_v3 faceme photomaker antelopev2`"):
        FaceMe.released(device="cpu")
    with pytest.raises(MissingWeights, match="`face2scene fetch realvisxl_v3 faceme photomaker antelopev2`"):
        Face2ScenePipeline.from_pretrained("tiny", ref_fr="faceme")
    with pytest.raises(MissingWeights, match="face2scene fetch antelopev2"):
        Antelope().detect(np.zeros((8, 8, 3), np.uint8))
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"):
        (tmp_path / name).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"scrfd_10g_bnkps\.onnx is not a whole network.*fetch antelopev2 again"):
        Antelope(tmp_path).ready()
