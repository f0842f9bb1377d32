"""Insightface packs."""

import shutil

import numpy as np
import pytest
from face_backends import write_nested_pack

from face2scene.assets.catalogue import MissingWeights
from face2scene.faces.backends.insightface import InsightBackend
from face2scene.faces.backends.insightface_packs import open_pack, pack_folder


def test_nested_folder_by_path_is_read(tmp_path, weights):
    inner = write_nested_pack(tmp_path, weights, "mine")
    assert pack_folder(tmp_path / "mine") == inner
    assert (inner / "README.txt").exists()


def test_partial_pack_lists_missing_files(tmp_path, weights, monkeypatch):
    inner = write_nested_pack(tmp_path, weights)
    (inner / "w600k_mbf.onnx").unlink()
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"w600k_mbf\.onnx missing.*face2scene fetch insightface_small"):
        pack_folder("insightface_small")


def test_missing_pack_names_fetch_command(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="face2scene fetch antelopev2"):
        InsightBackend("antelopev2").search(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"faces\.backend\.pack=buffalo_xxl is neither a folder nor"):
        pack_folder("buffalo_xxl")


def test_empty_or_ambiguous_pack_is_refused(buffalo_like_pack, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no \.onnx file: unpack"):
        pack_folder(tmp_path / "empty")
    shutil.copy(buffalo_like_pack / "w600k_r50.onnx", buffalo_like_pack / "glintr100.onnx")
    with pytest.raises(ValueError, match=r"two networks for identity, glintr100\.onnx and w600k_r50\.onnx"):
        open_pack(buffalo_like_pack)
    (buffalo_like_pack / "glintr100.onnx").unlink()
    (buffalo_like_pack / "det_10g.onnx").unlink()
    with pytest.raises(ValueError, match=r"no network for detection \(it holds 1k3d68\.onnx, "):
        open_pack(buffalo_like_pack)


def test_replaced_network_is_reloaded(buffalo_like_pack):
    path = buffalo_like_pack / "w600k_r50.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"w600k_r50\.onnx is not a readable network .*: replace it with a whole copy"):
        open_pack(buffalo_like_pack)
    path.write_bytes(whole)
    assert open_pack(buffalo_like_pack).identity.name == "w600k_r50"
