"""S3Diff against its released computation (`s3diff_reference`)."""

import hashlib
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from network_moves import record_moves
from s3diff_reference import by_hand, scores_by_hand, tiles_by_hand
from tolerances import RELOADED
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.common.model_files import load_weights
from face2scene.common.reproducibility import seed_from
from face2scene.eval.baselines.methods import S3DiffAsReleased
from face2scene.image_io.arrays import align_colour
from face2scene.models.loading import load_restorer
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.tiling import TilePlan
from face2scene.models.s3diff.degradation_scores import ScoreNet
from face2scene.models.s3diff.latent_tiles import in_latent_tiles
from face2scene.models.s3diff.model import S3Diff, _image
from face2scene.train import tiny_base as make_base

pytestmark = pytest.mark.numerics


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model(released_files):
    """Shared: tests that change it restore it, or read their own."""
    return S3Diff.from_file(released_files[2])


def test_degradation_scores_match_released(model, released_files):
    image = torch.rand(1, 3, 37, 50)
    expected = scores_by_hand(released_files[1], image)
    torch.testing.assert_close(model.score_net(image).double(), expected, atol=1e-6, rtol=0)
    assert ((expected - 0.5).abs() > 0.05).all() and ((expected - 0.5).abs() < 0.45).all()


@pytest.fixture
def s3diff_fp64(model):
    """The shared model in double precision, where merged and modulated LoRAs differ by rounding alone."""
    yield model.double()
    model.float()


@pytest.mark.parametrize(("size", "scale"), [((64, 128), 1), ((15, 29), 4), ((70, 100), 1)])
def test_output_matches_released(s3diff_fp64, released_files, base_folder, size, scale):
    content, scores, _ = released_files
    image = torch.rand(1, 3, *size)
    large = F.interpolate(image.double(), size=[side * scale for side in size], mode="bilinear")
    height, width = large.shape[-2:]
    padded = F.pad((large * 2 - 1).clamp(-1, 1), (0, -width % 64, 0, -height % 64), mode="reflect")
    torch.manual_seed(3)
    expected = by_hand(base_folder, content, scores_by_hand(scores, image), padded)[..., :height, :width] / 2 + 0.5
    torch.manual_seed(3)
    ours = s3diff_fp64.restore(image.double(), scale=scale)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.05 and ((expected > 0) & (expected < 1)).double().mean() > 0.5


def test_fp32_output_matches_released(model, released_files, base_folder):
    image = torch.rand(1, 3, 64, 64)
    torch.manual_seed(3)
    expected = (
        by_hand(base_folder, released_files[0], scores_by_hand(released_files[1], image), image * 2 - 1) / 2 + 0.5
    )
    torch.manual_seed(3)
    torch.testing.assert_close(model.restore(image), expected, atol=1e-4, rtol=0)


def test_enlarged_image_is_scored_before_enlargement(model, monkeypatch):
    small = torch.rand(1, 3, 16, 16)
    large = F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)
    seeds, scored = torch.tensor([3]), []
    monkeypatch.setattr(model.score_net, "forward", lambda image: scored.append(image) or torch.full((1, 2), 0.5))
    monkeypatch.setattr(model, "score_reduction", 4)
    model(large, seeds=seeds, small=small)
    assert scored.pop() is small  # as published, in training
    model(large, seeds=seeds)
    model.restore(large)
    for reduced in (scored.pop(), scored.pop()):
        torch.testing.assert_close(reduced, small, atol=0.1, rtol=0)  # white noise, of range 1
    model.restore(small, scale=4)
    assert scored.pop() is small


@pytest.mark.parametrize(("height", "width"), [(16, 24), (13, 40), (8, 64), (24, 16)])
def test_latent_tiles_match_released(height, width):
    latent = torch.randn(2, 4, height, width)

    def work(part: Tensor) -> Tensor:
        return part.cumsum(-1) + part.cumsum(-2)  # depends on where the tile begins

    ours = in_latent_tiles(work, latent, tile=12, overlap=5)
    torch.testing.assert_close(ours, tiles_by_hand(work, latent, 12, 5), atol=1e-4, rtol=0)
    assert in_latent_tiles(work, latent[..., :12, :12], tile=12, overlap=5).equal(work(latent[..., :12, :12]))
    with pytest.raises(ValueError, match=r"13 x 4 is too narrow .*: lower latent_overlap"):
        in_latent_tiles(work, torch.randn(1, 4, 13, 4), tile=7, overlap=5)


def test_large_latent_is_tiled(model, monkeypatch):
    image, calls = torch.rand(1, 3, 64, 128), []
    monkeypatch.setattr(model, "latent_tile", 8)
    monkeypatch.setattr(model, "latent_overlap", 0)
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[-2:]))
    model.restore(image)
    handle.remove()
    assert calls == [(8, 8)] * 4  # two tiles, two prompts


def test_bf16_base_trains_in_fp32(released_files):
    model, image = S3Diff.from_file(released_files[2], dtype="bf16").unfreeze(), torch.rand(2, 3, 64, 64)
    assert model.unet.conv_out.base_layer.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    seeds = torch.tensor([7, 8])
    output = model(image, seeds=seeds)
    output.square().mean().backward()
    with torch.no_grad():
        assert torch.allclose(output[1:], model(image[1:], seeds=seeds[1:]), atol=0.05)  # a seed is the image's own
    other = S3Diff.from_file(released_files[2])
    s3diff_fp64 = other.restore(image, posterior="mean")
    half = model.restore(image, posterior="mean")
    assert (half - s3diff_fp64).abs().mean() < 0.05
    dtypes = [{n: p.dtype for n, p in each.named_parameters()} for each in (model, other.merged(torch.bfloat16))]
    assert dtypes[0] == dtypes[1] and torch.isfinite(other.restore(image)).all()


def test_bf16_output_is_scaled_in_fp32():
    decoded = torch.linspace(-1.2, 1.2, 20001).bfloat16()
    image = _image(decoded)
    assert image.dtype == torch.float32 and len(image.unique()) == len(decoded.clamp(-1, 1).unique())


def test_modulation_is_per_image(s3diff_fp64):
    model, images = s3diff_fp64, torch.rand(2, 3, 64, 64).double()
    scores = torch.tensor([[0.2, 0.9], [0.7, 0.1]]).double()
    together = model.restore(images, posterior="mean", scores=scores)
    separate = [model.restore(i[None], posterior="mean", scores=s[None]) for i, s in zip(images, scores, strict=True)]
    torch.testing.assert_close(together, torch.cat(separate), atol=1e-5, rtol=0)
    swapped = model.restore(images, posterior="mean", scores=scores.flip(0))
    assert (swapped - together).abs().amax((1, 2, 3)).min() > 1e-2


def test_forward_matches_unguided_restore(model):
    image = torch.rand(1, 3, 64, 64)
    torch.manual_seed(4)
    trained = model(image)
    torch.manual_seed(4)
    torch.testing.assert_close(trained, model.restore(image, guidance=1), atol=1e-6, rtol=0)
    torch.manual_seed(4)
    assert not torch.allclose(model(image, negative=torch.tensor([True])), trained, atol=1e-4)


def test_modulation_leaves_no_hooks(model):
    image = torch.rand(1, 3, 64, 64)
    model.restore(image)
    with pytest.raises(ValueError, match="scores of 3 images were given for a batch of 1"):
        model.restore(image, scores=torch.rand(3, 2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("start", ["near_zero", "identity"])
def test_fresh_model_matches_base(base_folder, start):
    base = load_base(base_folder)
    model = S3Diff(load_base(base_folder), ScoreNet(), vae_rank=2, unet_rank=4, start=start)
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        for factor in (0, 1):  # B starts at zero; then with a B that is not zero
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


def test_checkpointing_keeps_all_gradients(released_files):
    # 128 pixels are two places in the middle block. At 64 there is one: its self-attention's weight is 1 whatever query
    # and key are, so that their gradient is zero but for rounding.
    model = S3Diff.from_file(released_files[2]).unfreeze()
    image, gradients = torch.rand(2, 3, 64, 128), []
    for checkpointing in (False, True):
        if checkpointing:
            model.vae.enable_gradient_checkpointing()
            model.unet.enable_gradient_checkpointing()
        model.zero_grad()
        torch.manual_seed(5)
        (model(image, negative=torch.tensor([True, False])) - 0.3).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, again = gradients
    trained = {n for n in model._stored()} - {n for n, _ in model.named_buffers()}
    assert plain.keys() == {n for n in trained if not n.startswith("score_net.")}
    # the smallest of the largest gradients is 1e-5, also in double precision; rounding leaves 1e-12 of a true zero
    assert [n for n, g in plain.items() if g is None or not g.isfinite().all() or g.abs().max() < 1e-6] == []
    assert all(torch.allclose(plain[n], again[n], atol=1e-6, rtol=1e-4) for n in plain)


def test_bf16_overflow_reruns_in_fp32(released_files, caplog):
    model, image = S3Diff.from_file(released_files[2], dtype="bf16"), torch.rand(1, 3, 64, 64)
    narrow = model.vae.decoder.forward

    def overflowing(sample, *args, **kwargs):
        output = narrow(sample, *args, **kwargs)
        return output * float("inf") if sample.dtype == torch.bfloat16 else output

    model.vae.decoder.forward = overflowing
    output = model.restore(image, posterior="mean")
    assert "The VAE decoder gave values that are not finite; it runs again in float32." in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert not any("UNet" in message for message in warned) and torch.isfinite(output).all()
    assert model.vae.decoder.conv_in.weight.dtype == torch.bfloat16


def test_out_of_memory_names_options(model, monkeypatch):
    def exhaust(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.unet, "forward", exhaust)
    with pytest.raises(torch.OutOfMemoryError, match=r"lower pipeline\.tile, set guidance=1, or dtype=fp16"):
        model.restore(torch.rand(1, 3, 64, 64))


def test_seeded_sample_is_per_image(model):
    images, seeds = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    both = model.restore(images, seeds=seeds)
    torch.testing.assert_close(model.restore(images[1:], seeds=seeds[1:]), both[1:], atol=1e-3, rtol=0)


def test_offload_has_all_networks_on_the_device(model, monkeypatch):
    moves = record_moves(monkeypatch)
    plan = TilePlan.of((64, 64), model, tile=None)
    next(model.restore_tiled(torch.rand(1, 3, 64, 64), None, plan, [1.0], device="cpu:0", offload=True))
    names = ("AutoencoderKL", "UNet2DConditionModel")
    assert [one for one in moves if one[0] in names] == [(n, where) for where in ("cpu:0", "cpu") for n in names]


def test_save_load_round_trip(model, tmp_path):
    model.save(tmp_path / "again.safetensors", about={"steps": 1})
    again = load_restorer(tmp_path / "again.safetensors")
    image = torch.rand(1, 3, 64, 64)
    expected = model.restore(image, posterior="mean")
    torch.testing.assert_close(again.restore(image, posterior="mean"), expected, **RELOADED["fp32"])
    assert isinstance(again, S3Diff) and again.config == model.config
    model.save(tmp_path / "half.safetensors", about={}, dtype=torch.float16)
    tensors, _, _ = load_weights(tmp_path / "half.safetensors", kind="s3diff")
    small_parts = {t.dtype for n, t in tensors.items() if not n.startswith(("vae.", "unet."))}
    assert small_parts == {torch.float32} and tensors["unet.conv_in.bias"].dtype == torch.float16


def test_base_with_five_levels_raises(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "deep")
    make_base.tiny_unet(channels=[8] * 5, latent_channels=4, text_width=32, heads=2).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match=r"at most 4 resolutions .* has 5: set restorer\.base\.source"):
        S3Diff(load_base(folder), ScoreNet(), vae_layers=["encoder.*conv1"])


def test_scheduler_clipping_is_kept(base_folder, tmp_path):
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


def test_baseline_matches_released_program(model, released_files):
    """Scores of the small image, the whole image at once, eight bits that are cut off; a seed of the image."""
    image = torch.rand(3, 40, 56)
    method = S3DiffAsReleased(released_files[2], device="cpu")
    result = method(image, 4)
    seed = seed_from(123, hashlib.sha256(image.numpy().tobytes()).hexdigest())
    options = {"scale": 4, "posterior": "sample", "seeds": torch.tensor([seed])}
    # By the method's own network, since cutting off makes 1/255 of a float32's last bit. The shared model has been to
    # double precision and back, so its weights lie elsewhere in memory and kernels may sum them in another order.
    output = method.network.restore(image[None], **options)
    torch.testing.assert_close(output, model.restore(image[None], **options), atol=1e-4, rtol=0)
    large = F.interpolate(image[None], scale_factor=4, mode="bilinear")
    cut = [(x * 255).byte() / 255 for x in (output, large)]
    assert torch.equal(result, ((align_colour(*cut, "wavelet") * 255).byte() / 255)[0])
    assert result.shape == (3, 160, 224) and torch.equal(method(image, 4), result)
    assert not torch.equal(method(image + 1e-3, 4), result)
