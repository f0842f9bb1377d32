"""Restorers without references: Real-ESRGAN, and those that spandrel reads."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr_compat import rrdbnet
from image_measures import detail
from tolerances import RELOADED

from face2scene.ref_fr.base import RestorerUnavailableError, in_bytes
from face2scene.ref_fr.no_reference import RealESRGAN, RRDBNet, SpandrelFace, load_real_esrgan, read_ncnn


@pytest.mark.numerics
def test_real_esrgan_matches_basicsr(weights):
    network = load_real_esrgan(weights("real_esrgan_x4plus"))
    theirs = rrdbnet(3, 3, 4, 64, 23, 32)
    theirs.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(image), theirs(image), **RELOADED["fp32"])


def test_real_esrgan_sharpens_photo(weights, photo):
    gt = torch.from_numpy(photo[60:156, 180:276].copy()).permute(2, 0, 1)
    restorer = RealESRGAN(weights("real_esrgan_x4plus"), device="cpu")
    restored = restorer.restore(gt, (), gt=None, rng=np.random.default_rng(0))
    assert restored.shape == gt.shape
    small = torch.nn.functional.interpolate(gt[None], size=(24, 24), mode="bicubic", antialias=True)
    bicubic = torch.nn.functional.interpolate(small, size=(96, 96), mode="bicubic")[0]

    assert detail(restored) > 1.2 * detail(bicubic)
    assert (restored - gt).square().mean() < 0.02
    with pytest.raises(ValueError, match="between 1 and 4"):
        RealESRGAN(shrink=5)


def test_wrong_length_ncnn_file_raises(tmp_path, weights):
    place = weights("real_esrgan_x4plus")
    param = place / "realesrgan-x4plus.param"
    data = (place / "realesrgan-x4plus.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut short at Conv"):
        read_ncnn(param, tmp_path / "cut.bin")
    (tmp_path / "long.bin").write_bytes(data + b"1234")
    with pytest.raises(ValueError, match="4 bytes beyond"):
        read_ncnn(param, tmp_path / "long.bin")


def test_rrdbnet_has_351_convolutions():
    with torch.device("meta"):
        network = RRDBNet()
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 351


# --- spandrel


def write_random_weights(kind: str, path: Path) -> None:
    from spandrel.architectures.RestoreFormer import RestoreFormer
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    torch.manual_seed(0)
    network = CodeFormer() if kind == "codeformer" else RestoreFormer()
    torch.save({"params_ema": network.state_dict()}, path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "other"), [("codeformer", "restoreformer"), ("restoreformer", "codeformer")])
def test_spandrel_matches_released_network(tmp_path, kind, other):
    write_random_weights(kind, tmp_path / "r.pth")
    model = SpandrelFace(kind, str(tmp_path / "r.pth"), device="cpu")
    face = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16), size=(512, 512), mode="bicubic")
    result = model.restore_aligned(in_bytes(face), [[]])[0].image
    with torch.inference_mode():
        options = {"weight": 0.5} if kind == "codeformer" else {}
        known = model._network(in_bytes(face) * 2 - 1, **options)[0] / 2 + 0.5
    assert torch.equal(result, in_bytes(known)[0]) and result.std() > 0.001
    with pytest.raises(RestorerUnavailableError, match=f"not a {other}"):
        SpandrelFace(other, str(tmp_path / "r.pth"), device="cpu").ready()


def test_missing_spandrel_names_extra(tmp_path, monkeypatch):
    (tmp_path / "r.pth").write_bytes(b"PK cut")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(RestorerUnavailableError, match=r"pip install 'face2scene\[restorers\]'"):
        SpandrelFace("restoreformer", str(tmp_path / "r.pth"), device="cpu").ready()


@pytest.mark.slow  # as the other tests that need the extra `restorers`
def test_cut_spandrel_file_raises(tmp_path):
    (tmp_path / "r.pth").write_bytes(b"PK cut")
    with pytest.raises(RestorerUnavailableError, match=r"r\.pth is not a whole checkpoint"):
        SpandrelFace("restoreformer", str(tmp_path / "r.pth"), device="cpu").ready()
