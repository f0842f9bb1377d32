import copy
import functools
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from face2scene.converters import CONVERTERS
from face2scene.images import read_image, to_bytes, write_png
from face2scene.ref_fr import faceme, faceme_files, faceme_id, faceme_tiny
from face2scene.ref_fr.base import StageOneError, StageOneFailure, _frame, five_points, in_bytes, mirrored_points
from face2scene.ref_fr.faceme import SCHEDULERS, FaceMe
from face2scene.ref_fr.faceme_id import IDEncoder, Mix, clip_pixels, insert_tokens
from face2scene.ref_fr.faceme_tiny import SDXL_SCHEDULE, WholePicture, tiny_parts, tiny_unet
from face2scene.ref_fr.references import Antelope, Reference, ReferenceBook, SeenFace, choose, quality
from face2scene.ref_fr.versions import code_version
from face2scene.weights import MissingWeights, WeightsError

SDXL_UNET = {  # stabilityai/stable-diffusion-xl-base-1.0, which RealVisXL is tuned from
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
}


@pytest.fixture(scope="module", autouse=True)
def parts_made_once():
    """Random networks cost more to make than to run; every model still gets its own."""
    made = functools.cache(tiny_parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faceme_tiny, "tiny_parts", lambda seed=0: copy.deepcopy(made(seed)))
        yield


def tiny(**settings) -> FaceMe:
    return FaceMe.tiny(**{"size": 64, "steps": 3, "device": "cpu"} | settings)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, list[Path]]:
    """Two people of three photos each: WholePicture knows them by their colours."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    photos = {}
    for name, colour in {"ann": (0.9, 0.4, 0.2), "bob": (0.1, 0.3, 0.9)}.items():
        photos[name] = [folder / f"{name}{n}.png" for n in range(3)]
        for path in photos[name]:
            write_png(path, np.float32(colour) + rng.uniform(-0.05, 0.05, (80, 64, 3)).astype(np.float32))
    return photos


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    smooth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return in_bytes(F.interpolate(smooth, size=(64, 64), mode="bicubic"))


# --- the same numbers as the released code


def test_the_mixer_computes_what_the_names_of_the_released_file_say():
    torch.manual_seed(0)
    mix = Mix(32, 8)
    w = mix.state_dict()
    looks, identity = torch.randn(5, 32), F.normalize(torch.randn(5, 8), dim=-1)

    def block(x, name):
        y = F.layer_norm(x, x.shape[-1:], w[f"{name}.layernorm.weight"], w[f"{name}.layernorm.bias"])
        y = F.linear(y, w[f"{name}.fc1.weight"], w[f"{name}.fc1.bias"])
        y = F.linear(0.5 * y * (1 + torch.erf(y / 2**0.5)), w[f"{name}.fc2.weight"], w[f"{name}.fc2.bias"])
        return y

    x = block(identity, "pro_id.mlp1")
    x = x + block(x, "pro_id.mlp2")
    x = block(x, "pro_id.mlp3")
    x = x + block(x, "pro_id.mlp4")
    x = block(torch.cat([looks, x], -1), "mlp1")
    x = F.layer_norm(x, (32,), w["norm1.weight"], w["norm1.bias"])
    torch.testing.assert_close(mix(looks, identity), x + block(x, "mlp2"), atol=1e-6, rtol=0)


def test_the_id_encoder_is_clips_tower_with_both_projections():
    encoder = tiny_parts().id_encoder
    pixels = torch.randn(2, 3, 224, 224)
    pooled = encoder.vision_model(pixels)[1]
    first = super(IDEncoder, encoder).forward(pixel_values=pixels).image_embeds
    torch.testing.assert_close(encoder(pixels), torch.cat([first, pooled @ encoder.visual_projection_2.weight.T], -1))


def test_the_id_encoder_is_vit_l_14_by_the_names_of_the_released_file():
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


def test_the_mixer_has_the_released_files_names():
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


def clip_layer(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.mlp.fc1.weight": (inner, width), f"{name}.mlp.fc1.bias": (inner,)}
    shapes |= {f"{name}.mlp.fc2.weight": (width, inner), f"{name}.mlp.fc2.bias": (width,)}
    shapes |= {f"{name}.layer_norm{n}.{s}": (width,) for n in (1, 2) for s in ("weight", "bias")}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {f"{name}.self_attn.{projection}.weight": (width, width)}
        shapes |= {f"{name}.self_attn.{projection}.bias": (width,)}
    return shapes


def clip_text(width: int, inner: int, layers: int, projection: int | None) -> dict[str, tuple[int, ...]]:
    """A text encoder of SDXL as its released file has it."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
    }
    for n in range(layers):
        shapes |= clip_layer(f"text_model.encoder.layers.{n}", width, inner)
    return shapes | ({"text_projection.weight": (projection, width)} if projection else {})


def text_config(width: int, inner: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


@pytest.mark.parametrize(
    ("kind", "activation", "projection"),
    [(CLIPTextModel, "quick_gelu", None), (CLIPTextModelWithProjection, "gelu", 16)],
)
def test_a_text_encoder_is_read_and_used_as_clip_is_defined(tmp_path, kind, activation, projection):
    """Names as released, numbers as a second writing of CLIP gives them: the layer before the last, unnormalised."""
    width, layers = 16, 3
    w = {n: 0.3 * torch.randn(s) for n, s in clip_text(width, 32, layers, projection).items()}
    text_config(width, 32, layers, 2, activation).save_pretrained(tmp_path)
    save_file(w | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, tmp_path / "model.safetensors")
    encoder = faceme_files.load_text_encoder(kind, tmp_path)
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


def test_a_partial_text_encoder_is_refused_and_not_filled_with_random_numbers(tmp_path):
    shapes = clip_text(16, 32, 2, None)
    text_config(16, 32, 2, 2, "gelu").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        faceme_files.load_text_encoder(CLIPTextModel, tmp_path)
    del shapes["text_model.encoder.layers.1.mlp.fc1.weight"]
    shapes["text_model.final_layer_norm.bias"] = (4,)
    save_file({n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.fc1\.weight.*final_layer_norm\.bias \(4,\) for \(16,\)"
    ) as error:
        faceme_files.load_text_encoder(CLIPTextModel, tmp_path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize("box", [(10.4, 20.5, 200.6, 280.2), (-15.5, -3.2, 120.0, 90.7), (5, 5, 40, 40)])
def test_face_crops_are_what_clips_own_processor_makes(box):
    image = (np.random.default_rng(0).random((300, 260, 3)) * 255).astype(np.uint8)
    theirs = np.asarray(CLIPImageProcessorPil()(Image.fromarray(image).crop(box))["pixel_values"][0])
    np.testing.assert_allclose(clip_pixels(image, box).numpy(), theirs, atol=1e-6)


def test_reference_tokens_take_the_place_of_the_word_and_the_rest_moves_back():
    prompt = torch.arange(6.0)[:, None]
    tokens = torch.tensor([[10.0], [11.0]])
    assert insert_tokens(prompt, 3, tokens).flatten().tolist() == [0, 1, 2, 10, 11, 4]
    assert insert_tokens(prompt, 5, tokens).flatten().tolist() == [0, 1, 2, 3, 4, 10]
    assert insert_tokens(prompt, 3, tokens[:1]).flatten().tolist() == [0, 1, 2, 10, 4, 5]


def test_the_word_is_the_fourth_of_the_prompt():
    prompt = tiny_parts().prompt
    assert prompt.place == 4 and prompt.positive.shape == (77, 32)
    assert torch.equal(prompt.positive, prompt.negative)


def test_a_face_is_what_the_released_recipe_makes_of_it(faces, people):
    """The released script's steps written a second time, around diffusers' own pipeline, with a negative prompt of its
    own so that no two conditions are equal. Latents of every step agree to 1e-4, the picture to one of 255."""
    model = tiny(steps=4)
    parts, plain = model.parts, model.parts.prompt
    prompt = replace(plain, negative=plain.negative.flip(0) * 0.7, negative_pooled=plain.negative_pooled.flip(0) * 0.7)
    model._parts = parts = replace(parts, prompt=prompt)
    control = faces[:1] * 2 - 1

    # references: ArcFace's numbers of unit length beside CLIP's look at the box, through Mix, in place of "face"
    looks, identities = [], []
    for path in people["ann"]:
        image = to_bytes(read_image(path))
        seen = WholePicture().see(image)
        pixels = CLIPImageProcessorPil()(Image.fromarray(image).crop(seen.box))["pixel_values"][0]
        tower = parts.id_encoder.vision_model(torch.as_tensor(np.asarray(pixels))[None])[1]
        both = [parts.id_encoder.visual_projection(tower), parts.id_encoder.visual_projection_2(tower)]
        looks.append(torch.cat(both, dim=-1))
        identities.append(torch.tensor(seen.identity / np.linalg.norm(seen.identity))[None])
    tokens = parts.mix(torch.cat(looks), torch.cat(identities))
    torch.testing.assert_close(model.reference_tokens(people["ann"])[0], tokens, atol=1e-5, rtol=0)
    embeds = torch.cat([prompt.positive[None, :4], tokens[None], prompt.positive[None, 5:]], dim=1)[:, :77]

    # the start: a sample of the VAE's posterior under the noise of the last training step
    draw = faceme.face_generator(model.seed, faces[0])
    sample, noise = torch.randn((2, 1, 4, 8, 8), generator=draw)
    posterior = parts.vae.encode(control).latent_dist
    scheduler = DDPMScheduler.from_config(SDXL_SCHEDULE)
    latents = (posterior.mean + posterior.std * sample) * parts.vae.config.scaling_factor
    noised = scheduler.add_noise(latents, noise, torch.tensor([999]))

    pipeline = StableDiffusionXLControlNetPipeline(
        parts.vae, None, None, None, None, parts.unet, parts.controlnet, scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    steps = []

    def note(pipe, step, t, values):
        steps.append((int(t), values["latents"].clone()))
        return values

    made = pipeline(
        latents=noised.clone(),
        image=control,
        prompt_embeds=embeds,
        pooled_prompt_embeds=prompt.pooled[None],
        negative_prompt_embeds=prompt.negative[None],
        negative_pooled_prompt_embeds=prompt.negative_pooled[None],
        num_inference_steps=4,
        generator=draw,
        callback_on_step_end=note,
    ).images[0]
    assert [t for t, _ in steps] == [751, 501, 251, 1]

    def ours(until: int, **change) -> torch.Tensor:
        draw = faceme.face_generator(model.seed, faces[0])
        start = faceme.start_latents(parts.vae, control, model._schedule(), [draw])
        return model.denoise(start, control, change.get("embeds", embeds), [draw], until=until)

    for step, (_, known) in enumerate(steps, start=1):
        assert (ours(step) - known).abs().max() < 1e-4
    assert (ours(1, embeds=prompt.positive[None]) - steps[0][1]).abs().max() > 1e-3, "the references changed nothing"

    # colours: the input's low frequencies and the output's high ones, in five levels
    def low(x):
        kernel = torch.outer(*[torch.tensor([1.0, 2, 1]) / 4] * 2).expand(3, 1, 3, 3)
        for level in range(5):
            x = F.conv2d(F.pad(x, (2**level,) * 4, mode="replicate"), kernel, groups=3, dilation=2**level)
        return x

    output = torch.from_numpy(np.array(made) / 255.0 * 2 - 1).float().permute(2, 0, 1)[None]
    aligned = (output - low(output) + low(control)) / 2 + 0.5
    restored = model.restore_aligned(faces[:1], [people["ann"]])[0].image
    assert (restored - aligned[0].clamp(0, 1)).abs().max() < 1.01 / 255


def test_fifty_steps_start_at_981_and_the_noise_is_that_of_999(faces):
    model = tiny(steps=50)
    schedule = model._schedule()
    schedule.set_timesteps(50)
    assert int(schedule.timesteps[0]) == 981
    generator = faceme.face_generator(3, faces[0])
    latents = faceme.start_latents(model.parts.vae, faces[:1] * 2 - 1, schedule, [generator])
    draws = torch.randn((2, 4, 8, 8), generator=faceme.face_generator(3, faces[0]))
    posterior = model.parts.vae.encode(faces[:1] * 2 - 1).latent_dist
    clean = (posterior.mean + posterior.std * draws[0]) * 0.13025
    kept = float(torch.prod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2))
    torch.testing.assert_close(latents, kept**0.5 * clean + (1 - kept) ** 0.5 * draws[1], atol=1e-5, rtol=0)


# --- the whole path


def test_a_face_does_not_depend_on_its_batch_or_order(faces, people):
    model = tiny(batch=2)
    everyone = [people["ann"], people["bob"], people["ann"][:1]]
    together = model.restore_aligned(faces, everyone)
    turned = tiny(batch=3).restore_aligned(faces.flip(0), everyone[::-1])[::-1]
    for one, other, face, person in zip(together, turned, faces, everyone, strict=True):
        alone = tiny().restore_aligned(face[None], [person])[0].image
        assert one.image.shape == (3, 64, 64) and one.image.std() > 0.01
        # a batch may round the last bit of a float32 differently, and the result is rounded to 256 values
        assert (one.image - alone).abs().max() < 1.01 / 255 and (other.image - alone).abs().max() < 1.01 / 255
        assert (one.image - alone).abs().mean() < 1e-5
    assert not torch.equal(tiny(seed=1).restore_aligned(faces[:1], everyone[:1])[0].image, together[0].image)


def test_the_references_and_the_face_both_matter(faces, people):
    model = tiny(colour="none")
    one = model.restore_aligned(faces[:1], [people["ann"]])[0].image
    assert (model.restore_aligned(faces[:1], [people["bob"]])[0].image - one).abs().max() > 0.01
    assert (model.restore_aligned(faces[1:2], [people["ann"]])[0].image - one).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_runs(scheduler, faces, people):
    image = tiny(scheduler=scheduler, steps=10).restore_aligned(faces[:1], [people["ann"]])[0].image
    assert torch.isfinite(image).all() and image.std() > 0.01


def test_bfloat16_and_offloading_give_nearly_the_same_face(faces, people):
    plain = tiny().restore_aligned(faces[:1], [people["ann"]])[0].image
    half = tiny(dtype="bfloat16", offload=True).restore_aligned(faces[:1], [people["ann"]])[0].image
    assert 0 < (plain - half).abs().mean() < 0.02


def test_references_are_described_once(faces, people, monkeypatch):
    model, looks = tiny(), []
    seeing = WholePicture.see
    monkeypatch.setattr(WholePicture, "see", lambda self, image: (looks.append(1), seeing(self, image))[1])
    for _ in range(2):
        model.restore_aligned(faces[:2], [people["ann"], people["ann"]])
    assert len(looks) == 3


def test_the_book_of_references_forgets_the_oldest_and_keeps_no_pixels(people):
    book = ReferenceBook(pages=2)
    for number, path in enumerate(people["ann"]):
        assert book.unknown([path, path]) == [path]
        book.write(path, reference(f"{number}", 0, 0.5))
        assert book.read([path])[0].path == Path(str(number))
    assert book.unknown(people["ann"]) == people["ann"][:1]
    model = tiny()
    model.reference_tokens(people["bob"])
    numbers = [seen.looks.numel() + seen.identity.size for seen in model._book.read(people["bob"])]
    assert numbers == [32 + 8] * 3


def test_a_lack_of_memory_is_said_and_no_face_is_blamed(faces, people, monkeypatch):
    model = tiny()

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(model, "denoise", full)
    with pytest.raises(StageOneFailure, match=r"2 face\(s\) at once: set ref_fr\.batch=1"):
        model.restore_aligned(faces[:2], [people["ann"]] * 2)


def test_the_fingerprint_follows_weights_and_settings():
    prints = {tiny().fingerprint, tiny(steps=4).fingerprint, FaceMe.tiny(weights_seed=1, size=64).fingerprint}
    assert len(prints) == 3 and tiny().fingerprint == tiny(batch=1).fingerprint


def test_code_versions_ignore_comments_and_docstrings(tmp_path, monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    versions = []
    for number, text in enumerate(('"""A."""\nx = 1\n', '"""B."""\n# why\nx = 1\n', "x = 2\n")):
        (tmp_path / f"version_{number}.py").write_text(text)
        versions.append(code_version(importlib.import_module(f"version_{number}")))
    assert versions[0] == versions[1] != versions[2]


# --- choosing references


def reference(name: str, angle: float, quality: float) -> Reference:
    identity = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    return Reference(Path(name), identity, torch.zeros(8), quality)


def test_the_larger_group_of_one_person_is_used_and_the_others_are_named():
    described = [reference("a", 0, 0.1), reference("b", 2, 0.9), reference("c", 0.1, 0.2), None]
    chosen, notes = choose([Path(n) for n in "abcd"], described, most=4, same_person=0.3)
    assert [one.path.name for one in chosen] == ["a", "c"]
    assert "without a face" in notes[0] and "d" in notes[0]
    assert "several people" in notes[1] and notes[1].endswith("left out: b.")


def test_the_best_of_many_references_are_used_in_their_order():
    described = [reference(n, 0, q) for n, q in zip("abcde", (0.5, 0.1, 0.9, 0.7, 0.6), strict=True)]
    chosen, notes = choose([Path(n) for n in "abcde"], described, most=3, same_person=0.3)
    assert [one.path.name for one in chosen] == ["c", "d", "e"] and "best 3 of 5" in notes[0]


def test_large_frontal_sharp_faces_are_better(photo):
    points = np.array([[70.0, 80], [130, 80], [100, 110], [75, 140], [125, 140]])
    image = to_bytes(photo)
    turned = points.copy()
    turned[2, 0] = 125
    face = SeenFace((0, 0, 300, 300), points, np.ones(2))
    sharp = clip_pixels(image, face.box)
    soft = F.avg_pool2d(F.pad(sharp[None], (4, 4, 4, 4), mode="replicate"), 9, 1)[0]
    best = quality(face, sharp)
    assert best > quality(face, soft) > 0
    assert best > quality(SeenFace(face.box, turned, np.ones(2)), sharp)
    assert best > quality(SeenFace((0, 0, 60, 60), points, np.ones(2)), sharp)


class FakeDetector:
    def __init__(self, found_at: int):
        self.found_at, self.sizes, self.images = found_at, [], []

    def detect(self, image, input_size):
        self.sizes.append(input_size[0])
        self.images.append(image)
        if input_size[0] != self.found_at:
            return np.empty((0, 5), np.float32), np.empty((0, 5, 2), np.float32)
        points = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], np.float32)
        return np.float32([[0, 0, 20, 20, 0.9], [10, 12, 112, 112, 0.8]]), np.stack([points / 5, points])


def test_arcface_gets_the_largest_face_as_rgb(weights, photo):
    """With the small ArcFace of the packaged weights: the embedding is that of swapped channels."""
    zoo = pytest.importorskip("insightface.model_zoo")
    file = next(weights("w600k_mbf").glob("*.onnx"))
    recogniser = zoo.get_model(str(file), providers=["CPUExecutionProvider"])
    image = to_bytes(photo[10:290, 110:390])[::2, ::2].copy()
    antelope, detector = Antelope("unused"), FakeDetector(found_at=576)
    antelope.__dict__["_networks"] = [detector, recogniser]
    face = antelope.see(image)
    assert detector.sizes == [512, 640, 576] and face.box == (10, 12, 112, 112)
    import cv2
    from insightface.utils.face_align import norm_crop

    crop = norm_crop(image, landmark=face.points, image_size=112)
    blob = cv2.dnn.blobFromImages([crop[..., ::-1]], 1 / 127.5, (112, 112), (127.5,) * 3, swapRB=False)
    swapped = recogniser.session.run(None, {recogniser.input_name: blob})[0][0]
    np.testing.assert_allclose(face.identity, swapped / np.linalg.norm(swapped), atol=1e-5)
    right = recogniser.get_feat(np.ascontiguousarray(crop[..., ::-1]))[0]  # BGR, as the network wants it
    assert face.identity @ right / np.linalg.norm(right) < 0.999
    detector.found_at = 0
    assert antelope.see(image) is None and detector.sizes[-1] == 256


# --- released files


def half_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], *, random: bool = False) -> None:
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


def released_folder(folder: Path, kind: type, config: dict, change=lambda shapes: None, random: bool = False) -> int:
    with torch.device("meta"):
        network = kind.from_config(config)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    change(shapes)
    half_safetensors(folder / "diffusion_pytorch_model.safetensors", shapes, random=random)
    network.save_config(folder)
    return count


@pytest.mark.parametrize(
    ("kind", "config", "millions"),
    [
        (UNet2DConditionModel, SDXL_UNET, 2567.5),
        (ControlNetModel, {k: v for k, v in SDXL_UNET.items() if k not in ("sample_size", "up_block_types")}, 1251.0),
        (AutoencoderKL, SDXL_VAE, 83.7),
    ],
)
def test_full_size_files_are_accepted_by_their_names_and_shapes(tmp_path, kind, config, millions):
    assert released_folder(tmp_path, kind, config) / 1e6 == pytest.approx(millions, abs=0.1)
    faceme_files.compare_headers(kind, tmp_path)


SDXL_TEXT = {  # kind, width, inner, layers, heads, activation, projection
    "text_encoder": (CLIPTextModel, 768, 3072, 12, 12, "quick_gelu", None),
    "text_encoder_2": (CLIPTextModelWithProjection, 1280, 5120, 32, 20, "gelu", 1280),
}


@pytest.mark.parametrize("name", SDXL_TEXT)
def test_full_size_text_encoders_are_compared_by_the_released_names(tmp_path, name, monkeypatch):
    kind, width, inner, layers, heads, activation, projection = SDXL_TEXT[name]
    shapes = clip_text(width, inner, layers, projection)
    text_config(width, inner, layers, heads, activation).save_pretrained(tmp_path)
    half_safetensors(tmp_path / "model.safetensors", shapes)
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: torch.nn.Identity())
    faceme_files.load_text_encoder(kind, tmp_path)
    assert (
        sum(int(np.prod(s)) for s in shapes.values()) == {"text_encoder": 123060480, "text_encoder_2": 694659840}[name]
    )


def memory(kind: str) -> float:
    """GiB of this process: RssAnon now, or VmHWM, the most there ever was."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) / 2**20


@pytest.mark.slow
def test_random_files_of_full_shape_are_written_loaded_and_run(tmp_path, people, monkeypatch, capsys):
    """About 10 GB on the disk. Half-precision files are mapped: what is loaded takes little memory of its own."""
    import shutil
    import time

    from face2scene.runs import REPOSITORY

    start = time.perf_counter()
    base, control = (
        tmp_path / "base",
        {k: v for k, v in SDXL_UNET.items() if k not in ("sample_size", "up_block_types")},
    )
    released_folder(base / "unet", UNet2DConditionModel, SDXL_UNET, random=True)
    released_folder(base / "vae", AutoencoderKL, SDXL_VAE, random=True)
    released_folder(tmp_path / "controlnet", ControlNetModel, control, random=True)
    for name, (_, width, inner, layers, heads, activation, projection) in SDXL_TEXT.items():
        text_config(width, inner, layers, heads, activation).save_pretrained(base / name)
        half_safetensors(base / name / "model.safetensors", clip_text(width, inner, layers, projection), random=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(REPOSITORY / "checkpoints/tiny/base/tokenizer", base / name)
    (base / "scheduler").mkdir()
    (base / "scheduler/scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULE))
    with torch.device("meta"):
        own, towers = Mix().state_dict(), IDEncoder().state_dict()
    half_safetensors(tmp_path / "mix.safetensors", {n: tuple(t.shape) for n, t in own.items()}, random=True)
    tower = {n: (torch.randn(t.shape) * 0.02).half() for n, t in towers.items()}
    torch.save({"id_encoder": tower, "lora_weights": {}}, tmp_path / "photomaker-v1.bin")
    del tower
    written = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) / 1e9
    times = {"write": time.perf_counter() - start}

    class Seer(WholePicture):
        def see(self, image):
            seen = super().see(image)
            return replace(seen, identity=np.resize(seen.identity, 512) / 8)

    monkeypatch.setattr(faceme_files, "Antelope", lambda folder: Seer())
    start = time.perf_counter()
    model = FaceMe.released(
        base=str(base),
        controlnet=str(tmp_path / "controlnet"),
        mix=str(tmp_path / "mix.safetensors"),
        photomaker=str(tmp_path / "photomaker-v1.bin"),
        dtype="float16",
        vae_dtype="float16",
        size=64,
        device="cpu",
    )
    model.ready()
    times["load"] = time.perf_counter() - start
    loaded = {"RssAnon": memory("RssAnon"), "peak": memory("VmHWM")}
    parts = model.parts
    weight = parts.unet.state_dict()["mid_block.attentions.0.proj_in.weight"]
    with safe_open(base / "unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert torch.equal(weight, file.get_tensor("mid_block.attentions.0.proj_in.weight"))
    assert parts.prompt.positive.shape == (77, 2048) and parts.prompt.pooled.shape == (1280,)
    assert loaded["RssAnon"] < 4 and loaded["peak"] < 8

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
        said = {k: round(v, 1) for k, v in times.items()} | {k: round(v, 2) for k, v in loaded.items()}
        print(f"\n{written:.1f} GB written; seconds and GiB: {said}; peak in all {memory('VmHWM'):.2f} GiB")


def test_a_partial_controlnet_is_refused_before_it_is_read(tmp_path):
    config = {k: v for k, v in SDXL_UNET.items() if k not in ("sample_size", "up_block_types")}

    def spoil(shapes):
        del shapes["controlnet_mid_block.weight"]
        shapes["conv_in.weight"] = (320, 9, 3, 3)

    released_folder(tmp_path, ControlNetModel, config, spoil)
    with pytest.raises(ValueError, match=r"controlnet_mid_block\.weight.*conv_in\.weight \(320, 9, 3, 3\)") as error:
        faceme_files.load_network(ControlNetModel, tmp_path, "controlnet")
    assert "diffusion_pytorch_model.safetensors" in str(error.value)


def test_the_old_names_of_a_vaes_attention_are_known(tmp_path):
    def age(shapes):
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            for side in ("encoder", "decoder"):
                for kind in ("weight", "bias"):
                    name = f"{side}.mid_block.attentions.0.{new}.{kind}"
                    shape = shapes.pop(name)
                    shapes[name.replace(new, old)] = (*shape, 1, 1) if kind == "weight" else shape

    released_folder(tmp_path, AutoencoderKL, SDXL_VAE, age)
    faceme_files.compare_headers(AutoencoderKL, tmp_path)


def test_a_full_shape_mixer_goes_through_its_file(tmp_path):
    mix = Mix()
    save_file({name: t.half() for name, t in mix.state_dict().items()}, tmp_path / "mix.safetensors")
    loaded = faceme_id.load_mix(tmp_path / "mix.safetensors", Mix())
    assert loaded(torch.randn(2, 2048), torch.randn(2, 512)).shape == (2, 2048)
    assert torch.equal(loaded.mlp1.fc1.weight, mix.mlp1.fc1.weight.half().float())


def test_a_full_shape_photomaker_pickle_is_read_as_tensors_only(tmp_path):
    with torch.device("meta"):
        encoder = IDEncoder()
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(305.3, abs=0.5)
    # expanded from one number, so that the file is small whatever the shapes
    tensors = {name: torch.zeros(1).expand(t.shape) for name, t in encoder.state_dict().items()}
    extra = {"fuse_module.mlp1.fc1.weight": torch.zeros(1).expand(2048, 4096)}
    extra["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
    path = tmp_path / "photomaker-v1.bin"
    torch.save({"id_encoder": tensors | extra, "lora_weights": {}}, path)
    read = faceme_id.read_photomaker(path)["id_encoder"]
    kept = {n: t for n, t in read.items() if n not in extra}
    assert {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"id_encoder.*missing \['visual_projection_2\.weight'\]"):
        faceme_id.load_id_encoder({n: t for n, t in read.items() if "projection_2" not in n}, encoder, source=path)


def test_fetching_photomaker_turns_the_pickle_into_one_file_that_reads_the_same(tmp_path):
    encoder = tiny_parts().id_encoder
    lora = {"unet.mid_block.attentions.0.to_q_lora.up.weight": torch.randn(4, 2).t()}
    torch.save({"id_encoder": encoder.state_dict(), "lora_weights": lora}, tmp_path / "photomaker-v1.bin")
    before = faceme_id.read_photomaker(tmp_path / "photomaker-v1.bin")
    CONVERTERS["photomaker"](tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photomaker-v1.safetensors"]
    after = faceme_id.read_photomaker(tmp_path / "photomaker-v1.safetensors")
    for part in ("id_encoder", "lora_weights"):
        assert before[part].keys() == after[part].keys()
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])
    torch.save({"id_encoder": Evil()}, tmp_path / "photomaker-v1.bin")
    with pytest.raises(WeightsError, match="refused"):
        CONVERTERS["photomaker"](tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_what_is_no_photomaker_is_refused_with_a_sentence(tmp_path, capsys):
    path = tmp_path / "photomaker-v1.bin"
    torch.save({"id_encoder": Evil(), "lora_weights": {}}, path)
    with pytest.raises(ValueError, match="not a whole checkpoint of tensors"):
        faceme_id.read_photomaker(path)
    assert "run" not in capsys.readouterr().out
    torch.save({"id_encoder": {}}, path)
    with pytest.raises(ValueError, match="lacks the part 'lora_weights'"):
        faceme_id.read_photomaker(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        faceme_id.read_photomaker(path)
    with pytest.raises(FileNotFoundError, match=r"ref_fr\.photomaker"):
        faceme_id.read_photomaker(tmp_path / "nothing.bin")


def test_the_photomaker_lora_is_added_only_where_it_is_asked_for_and_fits():
    unet = tiny_unet()
    place = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    lora = {
        f"unet.{place}.processor.to_{k}_lora.{s}.weight": t
        for k in ("q", "out")
        for s, t in (("down", down), ("up", up))
    }
    before = {k: unet.get_submodule(f"{place}.{k}").weight.clone() for k in ("to_q", "to_k", "to_out.0")}
    assert faceme_id.apply_photomaker_lora(unet, lora, source="x") == 2
    for name, weight in before.items():
        expected = weight if name == "to_k" else weight + up @ down
        torch.testing.assert_close(unet.get_submodule(f"{place}.{name}").weight, expected)
    with pytest.raises(ValueError, match="half a pair"):
        faceme_id.apply_photomaker_lora(unet, {f"unet.{place}.processor.to_q_lora.up.weight": up}, source="x")


def test_released_files_of_tiny_networks_make_the_same_face(tmp_path, faces, people, monkeypatch):
    """The released layout, written from the tiny networks and read by the loader that reads the real one."""
    parts = tiny_parts(5)
    base = tmp_path / "base"
    parts.unet.save_pretrained(base / "unet")
    parts.vae.save_pretrained(base / "vae")
    parts.controlnet.save_pretrained(tmp_path / "controlnet")
    (base / "scheduler").mkdir()
    (base / "scheduler/scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULE))
    save_file(parts.mix.state_dict(), tmp_path / "mix.safetensors")
    torch.save({"id_encoder": parts.id_encoder.state_dict(), "lora_weights": {}}, tmp_path / "photomaker-v1.bin")
    monkeypatch.setattr(faceme_id, "Mix", lambda: Mix(32, 8))
    monkeypatch.setattr(faceme_id, "IDEncoder", lambda: tiny_parts(6).id_encoder)
    monkeypatch.setattr(faceme_files, "encode_prompts", lambda found, **texts: parts.prompt)
    monkeypatch.setattr(faceme_files, "Antelope", lambda folder: WholePicture())
    options = {
        "base": str(base),
        "controlnet": str(tmp_path / "controlnet"),
        "mix": str(tmp_path / "mix.safetensors"),
        "photomaker": str(tmp_path / "photomaker-v1.bin"),
    }
    settings = {"size": 64, "steps": 3, "device": "cpu"}
    made = FaceMe.released(**options, **settings).restore_aligned(faces[:1], [people["ann"]])[0].image
    known = FaceMe.tiny(weights_seed=5, **settings).restore_aligned(faces[:1], [people["ann"]])[0].image
    assert torch.equal(made, known)
    (tmp_path / "mix.safetensors").unlink()
    with pytest.raises(StageOneError, match=r"ref_fr\.mix"):
        FaceMe.released(**options, **settings).restore_aligned(faces[:1], [people["ann"]])


def test_weights_that_are_not_there_are_one_sentence_each_time(faces, people, monkeypatch, tmp_path):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    model = FaceMe.released(device="cpu")
    for _ in range(2):
        with pytest.raises(StageOneError, match="face2scene fetch realvisxl_v3"):
            model.restore_aligned(torch.rand(1, 3, 512, 512), [people["ann"]])
    with pytest.raises(MissingWeights, match="face2scene fetch antelopev2"):
        Antelope().see(np.zeros((8, 8, 3), np.uint8))
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"):
        (tmp_path / name).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"scrfd_10g_bnkps\.onnx is not a whole network.*fetch antelopev2 again"):
        Antelope(tmp_path).ready()


# --- bad input


def test_references_without_a_face_and_none_at_all_are_said(faces, tmp_path):
    write_png(tmp_path / "black.png", np.zeros((40, 40, 3), np.float32))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    paths = [tmp_path / "black.png", tmp_path / "broken.jpg"]
    with pytest.raises(StageOneError, match=r"none of the 2 reference pictures shows a face \(black.png, broken.jpg\)"):
        tiny().restore_aligned(faces[:1], [paths])
    with pytest.raises(StageOneError, match="got none"):
        tiny().restore_aligned(faces[:1], [[]])
    with pytest.raises(StageOneError, match=r"gone\.png is not there"):
        tiny().restore_aligned(faces[:1], [[tmp_path / "gone.png"]])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_references": 71}, "room for 1 to 70"),
        ({"scheduler": "euler"}, "choose one of"),
        ({"steps": 0}, "1 to 1000"),
        ({"size": 100}, "multiple of 64"),
    ],
)
def test_settings_out_of_range_name_the_option(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**settings)


def test_more_references_than_the_prompt_holds_are_cut_to_its_length(faces, people):
    many = people["ann"] * 25  # 75 tokens behind the first four of 77
    image = tiny(max_references=70).restore_aligned(faces[:1], [many])[0].image
    assert image.shape == (3, 64, 64)


# --- the way there and back


def points_in(size: float, roll: float) -> np.ndarray:
    from face2scene.faces.align import FFHQ_512

    centred = (FFHQ_512 - 256) * size / 512
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    return centred @ turn.T + 100


@pytest.mark.parametrize("roll", [0.0, np.pi])
def test_an_aligned_restorer_sees_the_face_upright_and_lays_it_back(roll):
    class Same(FaceMe):
        def __init__(self):
            self.size, self.seen = 128, None

        def restore_aligned(self, faces, references):
            self.seen = faces
            return [faceme.RestoredFace(faces[0])]

    rows = torch.linspace(0.1, 0.9, 200)[:, None].expand(200, 200)
    scene = torch.stack([rows, rows.T, rows * 0 + 0.5])
    restorer = Same()
    restored, notes = restorer.restore_in(scene, (60, 60, 140, 140), points_in(128, roll), ())
    assert (restored - scene[:, 60:140, 60:140]).abs().max() < 0.02
    downwards = restorer.seen[0, 0, -1, 64] - restorer.seen[0, 0, 0, 64]
    assert downwards < 0 if roll else downwards > 0
    assert bool(notes) == bool(roll)


def test_without_landmarks_the_square_is_taken_for_an_upright_face():
    transform, notes = _frame((100, 100, 240, 240), None, 512)
    assert transform.scale == pytest.approx(0.53 * 512 / 100) and notes == ()
    np.testing.assert_allclose(transform(np.array([[170.0, 170.0]])), [[0.515 * 512, 0.575 * 512]])
    _, notes = _frame((0, 0, 10, 10), np.zeros((5, 2)), 512)
    assert "upright in its box" in notes[0]


def test_five_points_and_their_mirror_image():
    points = np.arange(136, dtype=float).reshape(68, 2)
    five = five_points(points)
    np.testing.assert_allclose(five[0], points[36:42].mean(0))
    mirrored = mirrored_points(five, 200)
    np.testing.assert_allclose(mirrored[0], [199 - five[1, 0], five[1, 1]])
    np.testing.assert_allclose(mirrored_points(mirrored, 200), five)


def test_faces_that_come_from_files_stay_themselves(people):
    image = torch.from_numpy(read_image(people["ann"][0])).permute(2, 0, 1)
    assert torch.equal(in_bytes(image), image)
