"""Metrics against pyiqa, other implementations and publications; missing or changed weights."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from other_processes import start
from torch import nn

from face2scene.assets.catalogue import MARKER, catalogue
from face2scene.assets.convert import CONVERTERS
from face2scene.common.files import write_json
from face2scene.eval.metrics import pyiqa_backend
from face2scene.eval.metrics.fid import Fid
from face2scene.eval.metrics.identity import IdScore
from face2scene.eval.metrics.perceptual import Dists, Lpips
from face2scene.eval.metrics.psnr_ssim import ssim_rgb, ssim_y
from face2scene.eval.metrics.registry import METRICS, build_all, choose
from face2scene.eval.metrics.winograd import WinogradReLU, use_winograd
from face2scene.image_io.arrays import read_tensor

CALIBRATION_NAMES = ("I03", "I04", "I06", "I08", "I19")
# Published with the five images: of the authors' MATLAB code, and of pyiqa with its own parameter file.
MATLAB_NIQE = [15.7536, 3.6549, 3.2355, 3.1840, 8.6352]
PYIQA_NIQE = [15.6538, 3.6549, 3.2342, 3.1921, 9.0722]


@pytest.fixture(scope="module")
def calibration_pair(weights):
    place = weights("photos_pyiqa_calibration")
    return [
        torch.stack([read_tensor(place / side / f"{n}.bmp") for n in CALIBRATION_NAMES])
        for side in ("dist_dir", "ref_dir")
    ]


@pytest.mark.numerics
@pytest.mark.parametrize(("channels", "size"), [(64, (8, 8)), (64, (13, 18)), (96, (5, 7))])
def test_winograd_matches_direct_convolution(channels, size):
    torch.manual_seed(0)
    direct = nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU())
    fast = use_winograd(direct)
    assert isinstance(fast[0], WinogradReLU) and len(fast) == 1
    images = torch.randn(2, channels, *size)
    with torch.inference_mode():
        for given in (images, images.contiguous(memory_format=torch.channels_last)):
            assert torch.allclose(fast(given), direct(given), atol=2e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(64, 8, 3), nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(64, 8, 1)])
def test_other_layers_are_unchanged(layer):
    assert next(iter(use_winograd(nn.Sequential(layer, nn.ReLU())))) is layer


@pytest.mark.numerics
@pytest.mark.parametrize(("key", "ours"), [("lpips", Lpips), ("dists", Dists)])
def test_fast_lpips_dists_match_pyiqa(key, ours, calibration_pair, weights):
    weights("lpips"), weights("dists")
    plain = METRICS[key].engine.network("cpu")
    images, gts = (
        side[:2, :, 60:220, 80:272].contiguous(memory_format=torch.channels_last) for side in calibration_pair
    )
    with torch.inference_mode():
        theirs = plain(images, gts).flatten().tolist()
    fast = ours(plain.net, torch.device("cpu"))
    assert fast(images, gts).tolist() == pytest.approx(theirs, abs=1e-6)
    assert fast(gts.clone(), gts).tolist() == pytest.approx([0, 0], abs=1e-6)  # with the ground truth's kept features


@pytest.mark.numerics
def test_psnr_ssim_match_skimage(calibration_pair):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    ours, theirs = (side[1].permute(1, 2, 0).numpy() for side in calibration_pair)
    batch = [side[1:2] for side in calibration_pair]
    assert METRICS["psnr"].build()(*batch).item() == pytest.approx(peak_signal_noise_ratio(theirs, ours), abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    luma = [side @ np.array([65.481, 128.553, 24.966]) + 16 for side in (ours, theirs)]
    _, drawn = structural_similarity(*(side.round() for side in luma), full=True, **options)
    assert ssim_y(*batch).item() == pytest.approx(drawn[5:-5, 5:-5].mean(), abs=1e-4)
    _, drawn = structural_similarity(ours * 255, theirs * 255, channel_axis=2, full=True, **options)
    assert ssim_rgb(*batch).item() == pytest.approx(drawn[5:-5, 5:-5].mean(), abs=1e-4)


@pytest.mark.numerics
def test_niqe_matches_pyiqa(calibration_pair):
    values = METRICS["niqe"].build()(calibration_pair[0]).tolist()
    assert values == pytest.approx(PYIQA_NIQE, rel=2e-4)  # so the parameters in basicsr's file are the same
    assert values == pytest.approx(MATLAB_NIQE, rel=0.055)  # pyiqa's code is 5.06 percent away on the last one


@pytest.mark.numerics
def test_fid_features_match_tensorflow(weights):
    place = weights("fid_inception")
    scorer = METRICS["fid"].build()
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, 299, 299, generator=generator) * 255).round() / 255
    script = torch.jit.load(str(place / "default_1.pt"), map_location="cpu").eval()
    with torch.inference_mode():
        theirs = script((images * 255 - 128) / 128)
    # Another program for the same network: at 299 x 299 nothing is resized, so both see the same values.
    assert torch.allclose(scorer.features(images), theirs, atol=2e-4)


@pytest.mark.parametrize(("ours", "theirs", "width"), [(7, 9, 12), (30, 5, 12), (40, 50, 12)])
def test_frechet_distance_matches_sqrtm(ours, theirs, width):
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(ours)
    a, b = (torch.randn(n, width, generator=generator) * (1 + i) for i, n in enumerate((ours, theirs)))
    covariances = [np.cov(side.double().numpy(), rowvar=False) for side in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(width)).real
    mean = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    textbook = mean + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    assert Fid.distance(a, b) == pytest.approx(textbook, rel=1e-4)
    assert Fid.distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two images on each side"):
        Fid.distance(a[:1], b)


def test_identity_score_of_photo_with_itself(photo, weights):
    for asset in ("yunet", "dlib", "w600k_mbf"):
        weights(asset)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    blank = torch.full_like(image, 0.5)
    worse = torch.nn.functional.avg_pool2d(image, 15, 1, 7)
    found = IdScore()(torch.cat([image, worse, image]), torch.cat([image, image, blank]), [None] * 3)
    assert found[0] == pytest.approx(1, abs=1e-5) and found[1] < 0.9 and found[2].isnan()


def test_identity_score_refuses_bad_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    for name in METRICS["id"].assets:
        facts = {"fingerprint": catalogue()[name].fingerprint, "files": {f"{name}.bin": "1" * 64}}
        write_json(tmp_path / name / MARKER, facts)
        (tmp_path / name / f"{name}.bin").write_bytes(b"changed")
    with pytest.raises(pyiqa_backend.MetricMissing, match=r"yunet\.bin has changed .* run `face2scene fetch yunet`"):
        METRICS["id"].build()


def test_metrics_state_their_protocol():
    asked = "dists lpips lpips_vgg psnr psnr_y ssim ssim_y fid musiq clipiqa maniqa liqe liqe_mix topiq niqe id"
    assert set(METRICS) == set(asked.split())
    for metric in METRICS.values():
        facts = metric.described()
        assert facts["better"] in ("higher", "lower") and facts["compares"] in ("pair", "alone", "faces", "sets")
        assert facts["colour"] and facts["range"] and "8-bit RGB PNG" in facts["protocol"]
    assert len({metric.protocol for metric in METRICS.values()}) == len(METRICS)


WITHOUT_WEIGHTS = {"psnr", "psnr_y", "ssim", "ssim_y"}


def test_metric_identity_follows_weights_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(pyiqa_backend, "try_to_load_from_cache", lambda name, file: str(tmp_path / name / file))
    for name, asset in catalogue().items():
        if name in METRICS["id"].assets:
            write_json(tmp_path / name / MARKER, {"fingerprint": asset.fingerprint, "files": {f"{name}.bin": "1" * 64}})
            (tmp_path / name / f"{name}.bin").touch()
    before = {}
    for metric in METRICS.values():
        engine = metric.engine
        files = [tmp_path / "torch_home" / file for file in getattr(engine, "files", ())]
        files += [tmp_path / name / "model.safetensors" for name in getattr(engine, "hub", ())]
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"a network")
        found = metric.weights()
        assert len(found) == len(files) + len(metric.assets) and all(len(digest) == 64 for digest in found.values())
        assert bool(found) == (metric.key not in WITHOUT_WEIGHTS)
        before[metric.key] = metric.identity
    for path in [*tmp_path.rglob("*.p*"), *tmp_path.rglob("*.mat"), *tmp_path.rglob("*.safetensors")]:
        path.write_bytes(b"another network")
    for name in METRICS["id"].assets:
        marker = tmp_path / name / MARKER
        marker.write_text(marker.read_text().replace("1" * 64, "2" * 64))
    assert {key for key, identity in before.items() if METRICS[key].identity == identity} == WITHOUT_WEIGHTS


def test_changed_metric_weights_are_refused(weights, tmp_path, monkeypatch):
    shutil.copytree(weights("dists"), tmp_path / "dists")
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    place = pyiqa_backend.torch_home() / pyiqa_backend.DISTS
    assert pyiqa_backend.ready(pyiqa_backend.DISTS, pyiqa_backend.torch_home()) == place
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    with pytest.raises(pyiqa_backend.MetricMissing, match=r"DISTS_weights-f5e65c96\.pth as it was, and its sha256 is"):
        pyiqa_backend.ready(pyiqa_backend.DISTS, pyiqa_backend.torch_home())
    known = tmp_path / "hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth"  # put there by hand, with a hash that is published
    known.parent.mkdir(parents=True)
    known.write_bytes(b"another network")
    with pytest.raises(pyiqa_backend.MetricMissing, match="e95806b9"):
        pyiqa_backend.ready("hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth", tmp_path)


def test_earlier_fetch_is_replaced_by_link(weights, tmp_path):
    place = tmp_path / pyiqa_backend.DISTS
    place.parent.mkdir(parents=True)
    place.write_bytes(b"made by another version")
    assert pyiqa_backend.ready(pyiqa_backend.DISTS, tmp_path).samefile(weights("dists") / place.name)


def test_niqe_parameters_are_reproducible(tmp_path, monkeypatch):
    placed = []
    for number in range(2):
        monkeypatch.setattr("os.getpid", lambda number=number: 7 + number)
        monkeypatch.setattr("time.asctime", lambda number=number: f"day {number}")
        placed.append(pyiqa_backend.ready(pyiqa_backend.NIQE, tmp_path / f"{number}"))
    assert placed[0].read_bytes() == placed[1].read_bytes()
    assert pyiqa_backend.identity(placed[0]) == pyiqa_backend.identity(placed[1]) != pyiqa_backend.sha256_of(placed[0])


def test_converted_file_is_reproducible(weights, tmp_path):
    places = [tmp_path / name / "pt_inception-2015-12-05-6726825d.pth" for name in "ab"]
    for place in places:
        place.parent.mkdir()
        (place.parent / "default_1.pt").symlink_to(weights("fid_inception") / "default_1.pt")
        CONVERTERS["fid_inception"](place.parent)
    assert places[0].read_bytes() == places[1].read_bytes()


def test_file_identity_follows_values(tmp_path):
    files = [tmp_path / folder / pyiqa_backend.DISTS for folder in "abc"]
    for file, value in zip(files, (1, 1, 2), strict=True):
        file.parent.mkdir(parents=True)
        torch.save({"alpha": torch.full((3,), value)}, file, pickle_protocol=2 + (file == files[1]))
    same, too, other = map(pyiqa_backend.identity, files)
    assert same == too != other and pyiqa_backend.sha256_of(files[0]) != pyiqa_backend.sha256_of(files[1])


def test_processes_link_one_file_together(weights, tmp_path):
    fetched = (weights("dists") / Path(pyiqa_backend.DISTS).name).read_bytes()
    processes = [start(pyiqa_backend.ready, pyiqa_backend.DISTS, tmp_path) for _ in range(8)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    (linked,) = (tmp_path / pyiqa_backend.DISTS).parent.iterdir()
    assert linked.name == Path(pyiqa_backend.DISTS).name and linked.read_bytes() == fetched


def test_missing_metrics_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    start = time.process_time()
    ready, missing = build_all(choose([key for key in METRICS if key not in ("niqe", "psnr", "psnr_y")]))
    assert set(ready) == {"ssim", "ssim_y"} and time.process_time() - start < 15
    assert all("face2scene fetch" in why for why in missing.values())
    assert "fetch yunet" in missing["id"] and "fetch fid_inception" in missing["fid"]
    assert Path(pyiqa_backend.torch_home()).parent == tmp_path
