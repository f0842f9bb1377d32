"""FaceMe as Stage I: the numbers of the released code, whole faces, and what goes in."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLControlNetPipeline
from PIL import Image
from tiny_faceme import tiny
from torch.nn import functional as F

from face2scene.faces.align import five_points
from face2scene.image_io.arrays import read_image, to_bytes, write_png
from face2scene.ref_fr.base import FaceRestorationError, RestorerUnavailableError, _frame, in_bytes, mirrored_points
from face2scene.ref_fr.faceme import model as faceme
from face2scene.ref_fr.faceme.id_encoder import IDEncoder, Mix, clip_pixels, insert_tokens
from face2scene.ref_fr.faceme.model import SCHEDULERS, FaceMe
from face2scene.ref_fr.faceme.tiny import SDXL_SCHEDULE, WholeImage, tiny_parts
from face2scene.ref_fr.fingerprint import code_version

try:
    from transformers import CLIPImageProcessorPil
except ImportError:  # before transformers 5 the one without suffix works with PIL
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil

pytestmark = pytest.mark.usefixtures("faceme_parts_made_once")


# --- the same numbers as the released code


@pytest.mark.numerics
def test_mix_matches_released_formula():
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


@pytest.mark.numerics
def test_id_encoder_has_both_projections():
    encoder = tiny_parts().id_encoder
    pixels = torch.randn(2, 3, 224, 224)
    pooled = encoder.vision_model(pixels)[1]
    first = super(IDEncoder, encoder).forward(pixel_values=pixels).image_embeds
    torch.testing.assert_close(encoder(pixels), torch.cat([first, pooled @ encoder.visual_projection_2.weight.T], -1))


@pytest.mark.parametrize("box", [(10.4, 20.5, 200.6, 280.2), (-15.5, -3.2, 120.0, 90.7), (5, 5, 40, 40)])
def test_face_crop_matches_clip_processor(box):
    image = (np.random.default_rng(0).random((300, 260, 3)) * 255).astype(np.uint8)
    theirs = np.asarray(CLIPImageProcessorPil()(Image.fromarray(image).crop(box))["pixel_values"][0])
    np.testing.assert_allclose(clip_pixels(image, box).numpy(), theirs, atol=1e-6)


def test_reference_tokens_replace_word():
    prompt = torch.arange(6.0)[:, None]
    tokens = torch.tensor([[10.0], [11.0]])
    assert insert_tokens(prompt, 3, tokens).flatten().tolist() == [0, 1, 2, 10, 11, 4]
    assert insert_tokens(prompt, 5, tokens).flatten().tolist() == [0, 1, 2, 3, 4, 10]
    assert insert_tokens(prompt, 3, tokens[:1]).flatten().tolist() == [0, 1, 2, 10, 4, 5]


def test_trigger_word_position():
    prompt = tiny_parts().prompt
    assert prompt.place == 4 and prompt.positive.shape == (77, 32)
    assert torch.equal(prompt.positive, prompt.negative)


@pytest.mark.numerics
def test_face_matches_released_pipeline(faces, people, monkeypatch):
    """The released script's steps written a second time, around diffusers' own pipeline, with a negative prompt of its
    own so that no two conditions are equal. Latents of every step agree to 1e-4, the image to one of 255."""
    model = tiny(steps=4)
    parts, plain = model.parts, model.parts.prompt
    prompt = replace(plain, negative=plain.negative.flip(0) * 0.7, negative_pooled=plain.negative_pooled.flip(0) * 0.7)
    model._parts = parts = replace(parts, prompt=prompt)
    control = faces[:1] * 2 - 1

    # references: ArcFace's unit vector and CLIP's features of the box, through Mix, in place of "face"
    looks, identities = [], []
    for path in people["ann"]:
        image = to_bytes(read_image(path))
        face = WholeImage().detect(image)
        pixels = CLIPImageProcessorPil()(Image.fromarray(image).crop(face.box))["pixel_values"][0]
        tower = parts.id_encoder.vision_model(torch.as_tensor(np.asarray(pixels))[None])[1]
        both = [parts.id_encoder.visual_projection(tower), parts.id_encoder.visual_projection_2(tower)]
        looks.append(torch.cat(both, dim=-1))
        identities.append(torch.tensor(face.identity / np.linalg.norm(face.identity))[None])
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

    result = pipeline(
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

    def ours(embeds: torch.Tensor) -> list[torch.Tensor]:
        """The latents after every step."""
        schedule, draw, found = model._schedule(), faceme.face_generator(model.seed, faces[0]), []
        step = schedule.step

        @functools.wraps(step)
        def noting(*args, **options):
            found.append(step(*args, **options))
            return found[-1]

        start = faceme.start_latents(parts.vae, control, schedule, [draw])
        with monkeypatch.context() as patched:
            patched.setattr(schedule, "step", noting)
            patched.setattr(model, "_schedule", lambda: schedule)
            model.denoise(start, control, embeds, [draw])
        return [one.prev_sample for one in found]

    for own, (_, known) in zip(ours(embeds), steps, strict=True):
        assert (own - known).abs().max() < 1e-4
    assert (ours(prompt.positive[None])[0] - steps[0][1]).abs().max() > 1e-3, "the references changed nothing"

    # colours: the input's low frequencies and the output's high ones, in five levels
    def low(x):
        kernel = torch.outer(*[torch.tensor([1.0, 2, 1]) / 4] * 2).expand(3, 1, 3, 3)
        for level in range(5):
            x = F.conv2d(F.pad(x, (2**level,) * 4, mode="replicate"), kernel, groups=3, dilation=2**level)
        return x

    output = torch.from_numpy(np.array(result) / 255.0 * 2 - 1).float().permute(2, 0, 1)[None]
    aligned = (output - low(output) + low(control)) / 2 + 0.5
    restored = model.restore_aligned(faces[:1], [people["ann"]])[0].image
    assert (restored - aligned[0].clamp(0, 1)).abs().max() < 1.01 / 255


@pytest.mark.numerics
def test_start_latents_use_timestep_999(faces):
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


@pytest.mark.numerics
def test_face_is_independent_of_batch(faces, people):
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


def test_output_depends_on_face_and_references(faces, people):
    model = tiny(colour="none")
    one = model.restore_aligned(faces[:1], [people["ann"]])[0].image
    assert (model.restore_aligned(faces[:1], [people["bob"]])[0].image - one).abs().max() > 0.01
    assert (model.restore_aligned(faces[1:2], [people["ann"]])[0].image - one).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_scheduler_runs(scheduler, faces, people):
    image = tiny(scheduler=scheduler, steps=10).restore_aligned(faces[:1], [people["ann"]])[0].image
    assert torch.isfinite(image).all() and image.std() > 0.01


@pytest.mark.numerics
def test_bfloat16_offload_is_close(faces, people):
    plain = tiny().restore_aligned(faces[:1], [people["ann"]])[0].image
    half = tiny(dtype="bfloat16", offload=True).restore_aligned(faces[:1], [people["ann"]])[0].image
    assert 0 < (plain - half).abs().mean() < 0.02


def test_references_are_encoded_once(faces, people, monkeypatch):
    model, looks = tiny(), []
    seeing = WholeImage.detect
    monkeypatch.setattr(WholeImage, "detect", lambda self, image: (looks.append(1), seeing(self, image))[1])
    for _ in range(2):
        model.restore_aligned(faces[:2], [people["ann"], people["ann"]])
    assert len(looks) == 3


def test_out_of_memory_names_batch_option(faces, people, monkeypatch):
    model = tiny()

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(model, "denoise", full)
    with pytest.raises(RestorerUnavailableError, match=r"2 face\(s\) at once: set ref_fr\.batch=1"):
        model.restore_aligned(faces[:2], [people["ann"]] * 2)


def test_fingerprint_follows_weights_and_options():
    prints = {tiny().fingerprint, tiny(steps=4).fingerprint, FaceMe.tiny(weights_seed=1, size=64).fingerprint}
    assert len(prints) == 3 and tiny().fingerprint == tiny(batch=1).fingerprint


def test_code_fingerprint_ignores_comments(tmp_path, monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    versions = []
    for number, text in enumerate(('"""A."""\nx = 1\n', '"""B."""\n# why\nx = 1\n', "x = 2\n")):
        (tmp_path / f"version_{number}.py").write_text(text)
        versions.append(code_version(importlib.import_module(f"version_{number}")))
    assert versions[0] == versions[1] != versions[2]


# --- bad input


def test_unusable_references_are_reported(faces, tmp_path):
    write_png(tmp_path / "black.png", np.zeros((40, 40, 3), np.float32))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = [tmp_path / "black.png", tmp_path / "broken.jpg"]
    with pytest.raises(
        FaceRestorationError, match=r"none of the 2 reference images shows a face \(black.png, broken.jpg\)"
    ):
        tiny().restore_aligned(faces[:1], [paths])
    with pytest.raises(FaceRestorationError, match="got none"):
        tiny().restore_aligned(faces[:1], [[]])
    with pytest.raises(FaceRestorationError, match=r"gone\.png is not there"):
        tiny().restore_aligned(faces[:1], [[tmp_path / "gone.png"]])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_references": 71}, "room for 1 to 70"),
        ({"scheduler": "euler"}, "must be one of"),
        ({"steps": 0}, "1 to 1000"),
        ({"size": 100}, "multiple of 64"),
    ],
)
def test_out_of_range_options_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**settings)


def test_excess_references_are_truncated(faces, people):
    many = people["ann"] * 25  # 75 tokens behind the first four of 77
    image = tiny(max_references=70).restore_aligned(faces[:1], [many])[0].image
    assert image.shape == (3, 64, 64)


# --- the way there and back


def rotated_landmarks(size: float, roll: float) -> np.ndarray:
    from face2scene.faces.align import FFHQ_512

    centred = (FFHQ_512 - 256) * size / 512
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    return centred @ turn.T + 100


@pytest.mark.parametrize("roll", [0.0, np.pi])
def test_rotated_face_is_restored_upright(roll):
    class Same(FaceMe):
        def __init__(self):
            self.size, self.received = 128, None

        def restore_aligned(self, faces, references):
            self.received = faces
            return [faceme.RestoredFace(faces[0])]

    rows = torch.linspace(0.1, 0.9, 200)[:, None].expand(200, 200)
    scene = torch.stack([rows, rows.T, rows * 0 + 0.5])
    restorer = Same()
    pair = restorer.restore_in(scene, (60, 60, 140, 140), rotated_landmarks(128, roll), ())
    assert (pair.restored - scene[:, 60:140, 60:140]).abs().max() < 0.02
    downwards = restorer.received[0, 0, -1, 64] - restorer.received[0, 0, 0, 64]
    assert downwards < 0 if roll else downwards > 0
    assert bool(pair.notes) == bool(roll)


def test_missing_landmarks_assume_upright():
    transform, notes = _frame((100, 100, 240, 240), None, 512)
    assert transform.scale == pytest.approx(0.53 * 512 / 100) and notes == ()
    np.testing.assert_allclose(transform(np.array([[170.0, 170.0]])), [[0.515 * 512, 0.575 * 512]])
    _, notes = _frame((0, 0, 10, 10), np.zeros((5, 2)), 512)
    assert "upright in its box" in notes[0]


def test_five_points_and_mirroring():
    points = np.arange(136, dtype=float).reshape(68, 2)
    five = five_points(points)
    np.testing.assert_allclose(five[0], points[36:42].mean(0))
    mirrored = mirrored_points(five, 200)
    np.testing.assert_allclose(mirrored[0], [199 - five[1, 0], five[1, 1]])
    np.testing.assert_allclose(mirrored_points(mirrored, 200), five)


def test_8bit_faces_are_unchanged(people):
    image = torch.from_numpy(read_image(people["ann"][0])).permute(2, 0, 1)
    assert torch.equal(in_bytes(image), image)
