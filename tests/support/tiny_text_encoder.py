"""A small text encoder for random base models."""

from transformers import CLIPTextConfig, CLIPTextModel

from face2scene.models.restorer.base_model import CLIP_VOCABULARY


def tiny_text_encoder(*, text_width: int) -> CLIPTextModel:
    """A CLIP text model with the real vocabulary and two narrow layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=CLIP_VOCABULARY,
            hidden_size=text_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=CLIP_VOCABULARY - 2,
            eos_token_id=CLIP_VOCABULARY - 1,
            pad_token_id=0,
        )
    )
