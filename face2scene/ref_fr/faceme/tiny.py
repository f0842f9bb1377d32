"""FaceMe's networks with a few thousand random weights, for tests: SDXL's kinds of blocks and conditions."""

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig

from face2scene.common.shipped import CHECKPOINTS
from face2scene.ref_fr.faceme.id_encoder import IDEncoder, Mix
from face2scene.ref_fr.faceme.loading import CLIP_VOCABULARY, Parts, encode_with
from face2scene.ref_fr.faceme.references import ReferenceFace

_FIRST, _SECOND = 20, 12  # widths of the two text encoders
# RealVisXL's scheduler file, as SDXL-base has it.
SDXL_SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


class WholeImage:
    """A `ReferenceEncoder` without weights: the image's centre as face, its mean colours as identity."""

    version = "whole image"

    def ready(self) -> None:
        """Nothing to load."""

    def detect(self, image: np.ndarray) -> ReferenceFace | None:
        if image.max() == 0:
            return None
        height, width = image.shape[:2]
        cells = [half.mean((0, 1)) for half in np.array_split(image.astype(np.float32) / 255 - 0.5, 3, axis=0)]
        identity = np.concatenate(cells)[: (_FIRST + _SECOND) // 4]
        points = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.55], [0.38, 0.7], [0.62, 0.7]]) * [width, height]
        box = (0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height)
        return ReferenceFace(box, points, identity / max(float(np.linalg.norm(identity)), 1e-6))


def tiny_unet() -> UNet2DConditionModel:
    """Two levels, the lower with cross-attention, and SDXL's additional condition on size and pooled text."""
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        cross_attention_dim=_FIRST + _SECOND,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _SECOND,
    )


def tiny_parts(seed: int = 0) -> Parts:
    """All parts, random from `seed`, with the shipped tokenizer; the global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tiny_unet()
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        for name, parameter in controlnet.named_parameters():
            if "controlnet_" in name:  # zero-initialised, which would disable the control
                torch.nn.init.normal_(parameter, std=0.1)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8] * 4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.13025,
        )
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            patch_size=56,
            projection_dim=_FIRST,
        )
        id_encoder, mix = IDEncoder(vision, second=_SECOND), Mix(_FIRST + _SECOND, (_FIRST + _SECOND) // 4)
        encoders = [CLIPTextModel(_text(_FIRST)), CLIPTextModelWithProjection(_text(_SECOND))]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny/base/tokenizer", trust_remote_code=False)
    same = "A photo of face."
    prompt = encode_with([tokenizer, tokenizer], encoders, prompt=same, negative=same, word="face")
    for network in (unet, controlnet, vae, id_encoder, mix):
        network.eval().requires_grad_(False)
    return Parts(vae, unet, controlnet, id_encoder, mix, prompt, dict(SDXL_SCHEDULE), WholeImage())


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=CLIP_VOCABULARY - 2,
        eos_token_id=CLIP_VOCABULARY - 1,
        pad_token_id=0,
    )
