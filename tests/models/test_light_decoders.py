"""Small decoders behind the restorer's door, on random weights."""

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import Decoder

from face2scene.models.loading import save_merged
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.light_decoders import VOSR_FILE, replace_decoder
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.tiling import TilePlan

pytestmark = pytest.mark.numerics


@pytest.fixture
def restorer(tiny_base):
    torch.manual_seed(0)
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    ranks = {"vae_rank": 2, "unet_rank": 2, "vae_layers": lora.VAE_ENCODER[:6]}
    return OneStepRestorer(load_base(tiny_base), mapnet, **ranks).eval()


def taesd(folder, blocks=(1, 1)) -> AutoencoderTiny:
    torch.manual_seed(1)
    count = len(blocks)
    widths = {"encoder_block_out_channels": (8,) * count, "decoder_block_out_channels": (8,) * count}
    tiny = AutoencoderTiny(num_encoder_blocks=blocks, num_decoder_blocks=blocks, **widths)
    tiny.save_pretrained(folder)
    return tiny


def vosr(folder, widths=(32, 64)) -> Decoder:
    torch.manual_seed(1)
    shape = {"in_channels": 4, "out_channels": 3, "layers_per_block": 1, "block_out_channels": list(widths)}
    decoder = Decoder(**shape | {"up_block_types": ("UpDecoderBlock2D",) * len(widths)})
    folder.mkdir(exist_ok=True)
    torch.save({"config": shape, "model_state_dict": decoder.state_dict()}, folder / VOSR_FILE)
    return decoder.eval()


@pytest.mark.parametrize("kind", ["taesd", "vosr"])
def test_latent_reaches_decoder_at_its_scale(restorer, tmp_path, kind):
    own = taesd(tmp_path / "d") if kind == "taesd" else vosr(tmp_path / "d")
    assert replace_decoder(restorer.vae, tmp_path / "d").is_file()
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        # TAESD reads latents of the UNet's scale, VOSR's decoder those of the VAE's
        expected = own.decode(latent).sample if kind == "taesd" else own(latent / restorer.vae.config.scaling_factor)
        decoded = restorer.decode(latent)
    torch.testing.assert_close(decoded, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    assert decoded.std() > 1e-3


@pytest.mark.parametrize("kind", [taesd, vosr])
def test_merged_restorer_works_in_tiles(restorer, tmp_path, kind):
    kind(tmp_path / "d")
    torch.nn.Module.to(restorer.vae, torch.bfloat16)
    replace_decoder(restorer.vae, tmp_path / "d")
    assert {p.dtype for p in restorer.vae.decoder.parameters()} == {torch.bfloat16}
    image, tokens = torch.rand(1, 3, 48, 64), torch.randn(1, 21, 32)
    plan = TilePlan.of((48, 64), restorer, tile=48, overlap=16)
    (output,) = restorer.merged().restore_tiled(image, lambda box: tokens, plan, [1.1])
    assert output.shape == image.shape and output.isfinite().all() and output.std() > 0


def test_decoder_of_other_latents_is_refused(restorer, tmp_path):
    taesd(tmp_path / "d", blocks=(1, 1, 1, 1))
    before = restorer.vae.decoder
    with pytest.raises(ValueError, match=r"4 channels to 8 times the size.*have 4 and 2: set restorer\.decoder=null"):
        replace_decoder(restorer.vae, tmp_path / "d")
    assert restorer.vae.decoder is before and restorer.vae.post_quant_conv is not None


def test_other_files_are_refused(restorer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no .*: set restorer\.decoder to taesd or null"):
        replace_decoder(restorer.vae, tmp_path)
    vosr(tmp_path / "d")
    torch.save(torch.load(tmp_path / "d" / VOSR_FILE) | {"model_state_dict": {}}, tmp_path / "d" / VOSR_FILE)
    with pytest.raises(ValueError, match="does not fit Decoder: missing"):
        replace_decoder(restorer.vae, tmp_path / "d")


def test_published_widths_make_the_files_50_mb():
    decoder = Decoder(4, 3, ("UpDecoderBlock2D",) * 4, (64, 128, 256, 256), 2)
    assert sum(p.numel() for p in decoder.parameters()) == 12_387_459  # 49.5 MB in float32


def test_small_decoder_is_not_saved_as_the_vae_s(restorer, tmp_path):
    vosr(tmp_path / "d")
    replace_decoder(restorer.vae, tmp_path / "d")
    with pytest.raises(ValueError, match=r"small decoder cannot be saved .* set restorer\.decoder=null"):
        save_merged(restorer.merged(), tmp_path / "whole.safetensors", about={})
    assert not (tmp_path / "whole.safetensors").exists()
