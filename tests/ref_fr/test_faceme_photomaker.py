"""Faceme photomaker."""

import pytest
import torch

from face2scene.assets.catalogue import WeightsError
from face2scene.assets.convert import CONVERTERS
from face2scene.ref_fr.faceme import id_encoder
from face2scene.ref_fr.faceme.id_encoder import IDEncoder
from face2scene.ref_fr.faceme.tiny import tiny_parts, tiny_unet

pytestmark = pytest.mark.usefixtures("faceme_parts_made_once")


class UnsafePickle:
    def __reduce__(self):
        return (print, ("run",))


def test_full_size_pickle_is_read(tmp_path):
    with torch.device("meta"):
        encoder = IDEncoder()
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(305.3, abs=0.5)
    # expanded from one number, so that the file is small for all shapes
    tensors = {name: torch.zeros(1).expand(t.shape) for name, t in encoder.state_dict().items()}
    extra = {"fuse_module.mlp1.fc1.weight": torch.zeros(1).expand(2048, 4096)}
    extra["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
    path = tmp_path / "photomaker-v1.bin"
    torch.save({"id_encoder": tensors | extra, "lora_weights": {}}, path)
    read = id_encoder.read_photomaker(path)["id_encoder"]
    kept = {n: t for n, t in read.items() if n not in extra}
    assert {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"id_encoder.*missing \['visual_projection_2\.weight'\]"):
        id_encoder.load_id_encoder({n: t for n, t in read.items() if "projection_2" not in n}, encoder, source=path)


def test_conversion_keeps_tensors(tmp_path):
    encoder = tiny_parts().id_encoder
    lora = {"unet.mid_block.attentions.0.to_q_lora.up.weight": torch.randn(4, 2).t()}
    torch.save({"id_encoder": encoder.state_dict(), "lora_weights": lora}, tmp_path / "photomaker-v1.bin")
    before = id_encoder.read_photomaker(tmp_path / "photomaker-v1.bin")
    CONVERTERS["photomaker"](tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photomaker-v1.safetensors"]
    after = id_encoder.read_photomaker(tmp_path / "photomaker-v1.safetensors")
    for part in ("id_encoder", "lora_weights"):
        assert before[part].keys() == after[part].keys()
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])
    torch.save({"id_encoder": UnsafePickle()}, tmp_path / "photomaker-v1.bin")
    with pytest.raises(WeightsError, match="refused"):
        CONVERTERS["photomaker"](tmp_path)


def test_invalid_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "photomaker-v1.bin"
    torch.save({"id_encoder": UnsafePickle(), "lora_weights": {}}, path)
    with pytest.raises(ValueError, match="not a whole checkpoint of tensors"):
        id_encoder.read_photomaker(path)
    assert "run" not in capsys.readouterr().out
    torch.save({"id_encoder": {}}, path)
    with pytest.raises(ValueError, match="lacks the part 'lora_weights'"):
        id_encoder.read_photomaker(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        id_encoder.read_photomaker(path)
    with pytest.raises(FileNotFoundError, match=r"ref_fr\.photomaker"):
        id_encoder.read_photomaker(tmp_path / "nothing.bin")


def test_lora_is_added_where_it_fits():
    unet = tiny_unet()
    place = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    lora = {
        f"unet.{place}.processor.to_{k}_lora.{s}.weight": t
        for k in ("q", "out")
        for s, t in (("down", down), ("up", up))
    }
    before = {k: unet.get_submodule(f"{place}.{k}").weight.clone() for k in ("to_q", "to_k", "to_out.0")}
    assert id_encoder.apply_photomaker_lora(unet, lora, source="x") == 2
    for name, weight in before.items():
        expected = weight if name == "to_k" else weight + up @ down
        torch.testing.assert_close(unet.get_submodule(f"{place}.{name}").weight, expected)
    with pytest.raises(ValueError, match="half a pair"):
        id_encoder.apply_photomaker_lora(unet, {f"unet.{place}.processor.to_q_lora.up.weight": up}, source="x")
