"""Exported parts compute what the modules compute."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from tolerances import RELOADED

from face2scene.common.reproducibility import REPOSITORY
from face2scene.inference import export
from face2scene.models.fadex import FaDeX
from face2scene.models.loading import load_merged, load_restorer
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.one_step import OneStepRestorer

RESTORER = REPOSITORY / "checkpoints/tiny/restorer.safetensors"
FADEX = REPOSITORY / "checkpoints/tiny/fadex.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    fadex = FaDeX.from_file(FADEX)
    return folder, export.export_fadex(fadex, folder) | export.export_mapnet(RESTORER, folder)


@pytest.mark.numerics
def test_exported_files_match_modules(exported):
    folder, differences = exported
    assert set(differences) == {"fadex.onnx", "fadex.pt2", "mapnet.onnx", "mapnet.pt2"}
    assert all((folder / name).is_file() for name in differences)
    assert max(differences.values()) <= 5e-6


@pytest.mark.numerics
def test_onnx_chain_matches_at_any_size(exported):
    folder, _ = exported
    fadex, mapnet = FaDeX.from_file(FADEX), export.load_mapnet(RESTORER)
    sessions = {n: onnxruntime.InferenceSession(str(folder / f"{n}.onnx")) for n in ("fadex", "mapnet")}
    for size in ((3, 3, 16, 16), (1, 3, 41, 97)):
        restored, degraded = torch.rand(2, *size)
        features, embedding = sessions["fadex"].run(None, {"restored": restored.numpy(), "degraded": degraded.numpy()})
        (tokens,) = sessions["mapnet"].run(None, {"features": features})
        with torch.inference_mode():
            expected = fadex(restored, degraded)
            np.testing.assert_allclose(embedding, fadex.embed(expected), atol=1e-5)
            np.testing.assert_allclose(tokens, mapnet(expected), atol=1e-4)


@pytest.mark.parametrize("height", [4, 5, 7, 8, 13])
def test_matrix_pooling_matches_adaptive(height):
    features = torch.rand(2, 3, height, 11)
    for grid in (1, 2, 4):
        torch.testing.assert_close(export._MatrixPooledMapNet.pool(features, grid), MapNet.pool(features, grid))


def test_differing_export_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "_run_program", lambda path, given: (torch.zeros(1, 64, 17, 26), torch.zeros(1, 64)))
    with pytest.raises(ValueError, match=r"fadex\.pt2 gives values that differ"):
        export.export_fadex(FaDeX.from_file(FADEX), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.numerics
def test_merged_restorer_round_trip(tmp_path):
    export.export_merged(RESTORER, tmp_path / "merged.safetensors", dtype="fp32")
    merged, own = load_merged(tmp_path / "merged.safetensors"), OneStepRestorer.from_file(RESTORER)
    image = torch.rand(1, 3, 64, 64)
    tokens = own.tokens(None, 1)
    torch.testing.assert_close(merged.restore(image, tokens), own.merged().restore(image, tokens), **RELOADED["fp32"])
    export.export_merged(RESTORER, tmp_path / "half.safetensors", dtype="fp16")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "merged.safetensors").stat().st_size
    with pytest.raises(ValueError, match="dtype must be one of fp32, fp16, bf16, not 'fp8'"):
        export.export_merged(RESTORER, tmp_path / "x.safetensors", dtype="fp8")


def test_half_file_is_read_as_float32(tmp_path):
    export.export_merged(RESTORER, tmp_path / "merged.safetensors", dtype="fp32", file_dtype="fp16")
    merged = load_merged(tmp_path / "merged.safetensors")
    assert {p.dtype for p in merged.parameters()} == {merged.text.dtype} == {torch.float32}
    assert (tmp_path / "merged.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in merged.parameters())
    image, own = torch.rand(1, 3, 64, 64), OneStepRestorer.from_file(RESTORER)
    restored, expected = (one.restore(image, own.null_tokens) for one in (merged, own.merged()))
    assert (restored - expected).abs().max() < 0.02  # weights rounded to 11 bits
    with pytest.raises(ValueError, match="includes its base model: leave out base"):
        load_restorer(tmp_path / "merged.safetensors", source="nowhere")


def test_unknown_part_is_refused(tmp_path):
    command = [sys.executable, "scripts/export.py", f"output={tmp_path}", "parts=[unet]"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("There is no part 'unet' to export: choose among merged, fadex, mapnet")
