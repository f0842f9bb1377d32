"""DASR's degradation encoder as a FaDeX: its layers, and its published weights' names (Wang et al. 2021)."""

from collections.abc import Mapping

from torch import Tensor

from face2scene.common.model_files import fit
from face2scene.models.fadex.encoder import FaDeX

# 3 x 3 convolutions with batch norm and leaky ReLU; configs/fadex/dasr.yaml has the same layers on face pairs.
WIDTHS = (64, 64, 128, 128, 256, 256)
STRIDES = (1, 1, 2, 1, 2, 1)


def dasr_encoder(state: Mapping[str, Tensor]) -> FaDeX:
    """A frozen FaDeX with inputs `lq_only` that equals DASR's encoder.

    DASR's convolutions have biases in front of batch norms, which move into the norms' running means. DASR takes images
    in [0, 255] (its `rgb_range`), FaDeX in [0, 1]: the factor moves into the first convolution.

    Args:
        state: of DASR's `Encoder` (keys `E.0.weight`, `mlp.0.weight`, ...), its MoCo, or its BlindSR; loaded with
            `weights_only=True`.

    Raises:
        ValueError: no such encoder in it, or one of other layers.
    """
    last = [name for name in state if name.endswith("mlp.2.weight") and "encoder_k" not in name]
    if len(last) != 1:
        raise ValueError(
            f"This is no checkpoint of DASR's encoder: {len(last)} keys end in mlp.2.weight, expected one."
        )
    prefix = last[0].removesuffix("mlp.2.weight")
    encoder = FaDeX(WIDTHS, STRIDES, inputs="lq_only", start="random")
    tensors = {
        name.removeprefix(prefix).replace("mlp.", "head.").replace("E.", "body."): tensor
        for name, tensor in state.items()
        if name.startswith((f"{prefix}mlp.", f"{prefix}E."))
    }
    for number in range(len(WIDTHS)):
        bias, mean = tensors.pop(f"body.{3 * number}.bias", None), f"body.{3 * number + 1}.running_mean"
        if bias is not None and mean in tensors:
            tensors[mean] = tensors[mean] - bias
    tensors["body.0.weight"] = tensors["body.0.weight"] * 255
    fit(encoder, tensors, expected=set(encoder.state_dict()), source="DASR's encoder")
    return encoder.eval().requires_grad_(False)
