"""A face that Stage I refuses is restored without it, and the log has the reason; a broken Stage I is an error."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_restorer import tiny_restorer

from face2scene.common.types import Face, Scene
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr.base import RestorerUnavailableError
from face2scene.ref_fr.faceme.model import FaceMe


class CentreFaceDetector:
    """One face in the middle, upright or on its head."""

    def __init__(self, *, upside_down: bool = False):
        self.upside_down = upside_down

    def find(self, image: np.ndarray) -> list[Face]:
        points = np.array([[40.0, 44], [56, 44], [48, 54], [42, 60], [54, 60]])
        return [Face((36.0, 36.0, 60.0, 64.0), 0.9, 96 - points if self.upside_down else points)]


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    from face2scene.inference.pipeline import Face2ScenePipeline
    from face2scene.models.fadex.encoder import FaDeX

    restorer, fadex = tiny_restorer(tiny_base), FaDeX(widths=(8, 8), strides=(2, 1), embedding=8)
    return Face2ScenePipeline(restorer, fadex, detector=CentreFaceDetector())


def test_refused_face_uses_null_tokens(pipeline, photo_files):
    pipeline.ref_fr, pipeline.detector = FaceMe.tiny(size=64, steps=1, device="cpu"), CentreFaceDetector()
    image = torch.rand(3, 96, 96)
    result = pipeline(Scene("a", image, people={"ann": tuple(photo_files)}))
    assert result.notes["tokens"] == "pair" and result.estimate.pair.restored.shape == (3, 39, 39)
    assert not torch.equal(result.estimate.pair.restored, result.estimate.pair.degraded)
    black = photo_files[0].with_name("black.png")
    write_png(black, np.zeros((40, 30, 3), np.float32))
    for references, reason in [
        ((), "got none"),
        ((photo_files[0].with_name("gone.png"),), "gone.png is not there"),
        ((black,), "none of the 1 reference images shows a face (black.png)"),
    ]:
        plain = pipeline(Scene("a", image, people={"ann": references}))
        assert plain.image.shape == image.shape and plain.notes["tokens"] == "null"
        (warning,) = plain.notes["warnings"]
        assert reason in warning and warning.startswith("The learned null tokens stand in") and "\n" not in warning


def test_rotated_face_and_mixed_references(pipeline, tmp_path):
    paths = []
    for number, colour in enumerate([(0.9, 0.4, 0.2), (0.1, 0.3, 0.9), (0.9, 0.45, 0.2)]):
        paths.append(tmp_path / f"{number}.png")
        write_png(paths[-1], np.broadcast_to(np.float32(colour), (40, 30, 3)))
    pipeline.ref_fr, pipeline.detector = (
        FaceMe.tiny(size=64, steps=1, device="cpu"),
        CentreFaceDetector(upside_down=True),
    )
    result = pipeline(Scene("a", torch.rand(3, 96, 96), people={"ann": tuple(paths)}))
    assert result.notes["tokens"] == "pair" and result.image.shape == (3, 96, 96)
    turned, strangers = result.notes["warnings"]
    assert "turned by 180 degrees" in turned
    assert strangers.endswith("2 of 3 were used, and these left out: 1.png.")


@pytest.fixture(scope="module")
def faceme_release(tmp_path_factory) -> Path:
    """A folder laid out as FaceMe's weights, of tiny networks, without antelopev2."""
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from face2scene.ref_fr.faceme.id_encoder import Mix
    from face2scene.ref_fr.faceme.tiny import SDXL_SCHEDULE, tiny_parts

    folder, parts = tmp_path_factory.mktemp("released"), tiny_parts()
    for name in ("unet", "vae"):
        getattr(parts, name).save_pretrained(folder / "base" / name)
    parts.controlnet.save_pretrained(folder / "controlnet")
    with torch.device("cpu"):
        text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        CLIPTextModel(text).save_pretrained(folder / "base/text_encoder")
        CLIPTextModelWithProjection(text).save_pretrained(folder / "base/text_encoder_2")
    (folder / "base/scheduler").mkdir()
    (folder / "base/scheduler/scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULE))
    save_file(Mix(32, 8).state_dict(), folder / "mix.safetensors")
    torch.save({"id_encoder": parts.id_encoder.state_dict(), "lora_weights": {}}, folder / "photomaker-v1.bin")
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(name: str):
    def change(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)

    return change


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("base/unet/diffusion_pytorch_model.safetensors", drop_tensor("conv_in.weight"), ["unet", "conv_in.weight"]),
        ("controlnet/diffusion_pytorch_model.safetensors", truncate, ["controlnet", "not a whole safetensors file"]),
        ("base/vae/config.json", Path.unlink, ["config.json", "vae", "ref_fr.base"]),
        ("base/text_encoder/model.safetensors", drop_tensor("@first"), ["text_encoder", "missing"]),
        ("base/text_encoder_2/model.safetensors", Path.unlink, ["model.safetensors", "text_encoder_2"]),
        ("base/scheduler/scheduler_config.json", Path.unlink, ["scheduler_config.json", "ref_fr.base"]),
        ("mix.safetensors", drop_tensor("norm1.bias"), ["mix.safetensors", "norm1.bias"]),
        ("photomaker-v1.bin", truncate, ["photomaker-v1.bin", "not a whole checkpoint"]),
        ("antelope", None, ["scrfd_10g_bnkps.onnx", "ref_fr.antelope"]),
    ],
)
def test_broken_faceme_is_refused_by_name(
    pipeline, faceme_release, tmp_path, photo_files, monkeypatch, file, spoil, words
):
    import shutil

    from face2scene.ref_fr.faceme import id_encoder, loading
    from face2scene.ref_fr.faceme.id_encoder import Mix
    from face2scene.ref_fr.faceme.tiny import tiny_parts

    parts = tiny_parts()
    monkeypatch.setattr(id_encoder, "Mix", lambda: Mix(32, 8))
    monkeypatch.setattr(id_encoder, "IDEncoder", lambda: tiny_parts().id_encoder)
    if "text_encoder" not in file:
        monkeypatch.setattr(loading, "encode_prompts", lambda found, **texts: parts.prompt)
    folder = tmp_path / "released"
    shutil.copytree(faceme_release, folder)
    (folder / "antelope").mkdir()
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx") if spoil else ():
        (folder / "antelope" / name).touch()
    if spoil:
        name = "@first"
        if spoil.__name__ == "change" and "text_encoder" in file:
            from safetensors import safe_open

            with safe_open(folder / file, "pt") as opened:
                name = next(iter(opened.keys()))
            spoil = drop_tensor(name)
            words = [*words, name.removeprefix("text_model.")]
        spoil(folder / file)
    pipeline.detector = CentreFaceDetector()

    def use_released(use: Callable[[], object]) -> None:
        pipeline.ref_fr = FaceMe.released(
            base=str(folder / "base"),
            controlnet=str(folder / "controlnet"),
            mix=str(folder / "mix.safetensors"),
            photomaker=str(folder / "photomaker-v1.bin"),
            antelope=str(folder / "antelope"),
            size=64,
            device="cpu",
        )
        use()

    at_once = file.endswith("config.json") or file == "antelope"  # a missing file, before any weights are read
    for use in (
        lambda: pipeline(Scene("a", torch.rand(3, 96, 96), people={"ann": tuple(photo_files)})),
        pipeline.ready,
    ):
        with pytest.raises(FileNotFoundError if at_once else RestorerUnavailableError) as caught:
            use_released(use)
        sentence = str(caught.value)
        assert "\n" not in sentence
        for word in words:
            assert word in sentence, sentence
