import json
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from face2scene.data.manifest import Record, write_manifest
from face2scene.data.pairs import FacePairBatches, RestoredBy
from face2scene.data.precompute import faces_of, fill
from face2scene.data.scenes import SceneBatches, held_out
from face2scene.degradation import Space
from face2scene.files import sha256_of
from face2scene.images import read_tensor, write_png
from face2scene.records import Face, Scene
from face2scene.ref_fr import AlignedRefFR, Copy, GroundTruth, Imitation, Perturbed, StageOneError, face_pair
from face2scene.ref_fr.base import RestoredFace, StageOneFailure, in_bytes
from face2scene.ref_fr.cache import Cached
from face2scene.ref_fr.external import External
from face2scene.ref_fr.faceme import FaceMe
from face2scene.ref_fr.sr import RealESRGAN, RRDBNet, SpandrelFace, load_real_esrgan, read_ncnn


class Negative(AlignedRefFR):
    """Turns colours round and counts the faces it was shown; refuses a face without references."""

    name, size = "negative", 32

    def __init__(self, version: str = "1"):
        self.version, self.calls = version, []

    @property
    def fingerprint(self) -> str:
        return f"negative-{self.version}"

    def restore_aligned(self, faces, references):
        if any(not paths for paths in references):
            raise StageOneError("there are no references")
        self.calls.append(len(faces))
        rows = zip(faces, references, strict=True)
        return [RestoredFace(in_bytes(1 - face), (f"{len(paths)} references",)) for face, paths in rows]


def faces(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)) / 255


@pytest.fixture
def photo_files(tmp_path) -> list[Path]:
    for number in range(2):
        write_png(tmp_path / f"photos/{number}.png", np.full((40, 30, 3), 0.3 + 0.3 * number, np.float32))
    return sorted((tmp_path / "photos").glob("*.png"))


# --- stand-ins


def test_copy_and_ground_truth_are_what_they_say():
    damaged, truth = faces(2)
    rng = np.random.default_rng(0)
    assert torch.equal(Copy().restore(damaged, (), truth=truth, rng=rng), damaged)
    assert torch.equal(GroundTruth().restore(damaged, (), truth=truth, rng=rng), truth)


def test_the_imitation_is_the_truth_where_nothing_is_blended_in_and_moves_features_where_it_is():
    truth = torch.zeros(3, 64, 64)
    truth[:, 32, :] = 1
    given = {"truth": truth, "rng": np.random.default_rng(0)}
    assert torch.equal(Imitation(0, 2, 2, 0.1).restore(truth, (), **given), truth)
    places = torch.linspace(0, 1, 128)
    ramps = torch.stack([places.expand(128, 128), places[:, None].expand(128, 128), torch.full((128, 128), 0.5)])
    moved = Imitation(1, 0, 3, 0).restore(ramps, (), truth=ramps, rng=np.random.default_rng(0))
    path = ((moved - ramps) * 127)[:, 8:-8, 8:-8].square().sum(0).mean().sqrt()
    assert path == pytest.approx(3, rel=0.25)
    soft = Imitation(1, 2, 0, 0).restore(truth, (), **given)
    assert soft[0, 32, 32] == pytest.approx(1 / (2 * (2 * np.pi) ** 0.5), abs=0.01)
    with pytest.raises(ValueError, match="give truth=FOLDER"):
        Imitation(1, 0, 0, 0).restore(truth, (), truth=None, rng=np.random.default_rng(0))


TABLE_6 = {"good": (0.219, 0.375, 25.65), "medium": (0.227, 0.403, 24.73), "bad": (0.238, 0.452, 22.98)}


@pytest.mark.slow
def test_the_imitations_are_near_the_rows_of_table_6_on_packaged_faces(weights):
    """Half of the faces they were calibrated on; PSNR and LPIPS are near, DISTS is above, all three in order."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from face2scene.eval.metrics import METRICS
    from face2scene.faces.align import crop, square_crop_box
    from face2scene.faces.detect import Detector
    from face2scene.faces.open import OpenBackend
    from face2scene.images import resize, to_array
    from face2scene.runs import REPOSITORY

    finder, truths = Detector(OpenBackend(), landmarks=False, identities=False), []
    for name in ("obama.jpg", "obama2.jpg", "obama3.jpg", "biden.jpg"):
        image = read_tensor(weights("photos_face_recognition") / name)
        box = square_crop_box(finder.find(to_array(image))[0].box, tuple(image.shape[-2:]))
        truths.append(resize(crop(image, box), (256, 256)))
    scorers = [METRICS[key].build("cpu") for key in ("dists", "lpips", "psnr")]
    rows = []
    for level in TABLE_6:
        restorer = instantiate(OmegaConf.load(REPOSITORY / f"configs/ref_fr/perturbed_{level}.yaml"))
        made = [restorer.restore(t, (), truth=t, rng=np.random.default_rng(n)) for n, t in enumerate(truths)]
        with torch.no_grad():
            pair = in_bytes(torch.stack(made)), torch.stack(truths)
            rows.append([float(torch.as_tensor(scorer(*pair)).mean()) for scorer in scorers])
    assert rows[0][0] < rows[1][0] < rows[2][0] and rows[0][1] < rows[1][1] < rows[2][1]
    assert rows[0][2] > rows[1][2] > rows[2][2]
    for (dists, lpips, psnr), (dists_6, lpips_6, psnr_6) in zip(rows, TABLE_6.values(), strict=True):
        assert psnr == pytest.approx(psnr_6, abs=1.5), rows
        assert lpips == pytest.approx(lpips_6, rel=0.2), rows
        assert dists_6 * 0.9 < dists < dists_6 * 1.35, rows


# --- the cache


def test_a_hit_is_the_recomputed_face_and_asks_nobody(tmp_path, photo_files):
    inner = Negative()
    images = faces(3)
    people = [photo_files, photo_files[:1], photo_files]
    first = Cached(inner, tmp_path / "cache").restore_aligned(images, people)
    again = Cached(inner, tmp_path / "cache", missing="refuse").restore_aligned(images.flip(0), people[::-1])[::-1]
    fresh = Negative().restore_aligned(images, people)
    assert inner.calls == [3]
    for made, hit, known in zip(first, again, fresh, strict=True):
        assert torch.equal(made.image, known.image) and torch.equal(hit.image, known.image)
        assert made.notes == hit.notes == known.notes


def test_the_same_content_is_restored_once_whatever_its_name(tmp_path, photo_files):
    inner = Negative()
    other = tmp_path / "elsewhere.png"
    other.write_bytes(photo_files[0].read_bytes())
    image = faces(1)[0]
    cache = Cached(inner, tmp_path / "cache")
    assert cache.fill(torch.stack([image, image, image]), [photo_files[:1], [other], photo_files]) == 2
    assert inner.calls == [2]
    write_png(photo_files[0], np.full((40, 30, 3), 0.9, np.float32))  # a reference that changes is another one
    os.utime(photo_files[0], ns=(1, 1))
    assert cache.fill(image[None], [photo_files[:1]]) == 1


def test_a_stale_or_empty_cache_is_refused_by_those_who_must_not_wait(tmp_path, photo_files):
    with pytest.raises(FileNotFoundError, match="holds no face of this ref_fr=negative"):
        Cached(Negative(), tmp_path / "cache", missing="refuse")
    Cached(Negative(), tmp_path / "cache").fill(faces(1), [photo_files])
    with pytest.raises(FileNotFoundError, match=r"other weights, settings or code \(negative-1\)"):
        Cached(Negative("2"), tmp_path / "cache", missing="refuse")
    with pytest.raises(FileNotFoundError, match="1 of 2 faces are not in the cache"):
        Cached(Negative(), tmp_path / "cache", missing="refuse").fill(faces(2), [photo_files] * 2)
    with pytest.raises(ValueError, match="cannot be cached"):
        Cached(Perturbed(), tmp_path / "cache")


def test_a_refused_face_is_remembered_and_spoils_no_other(tmp_path, photo_files):
    inner = Negative()
    cache = Cached(inner, tmp_path / "cache")
    images = faces(2)
    assert cache.fill(images, [photo_files, []]) == 2
    assert cache.fill(images, [photo_files, []]) == 0 and inner.calls == [1]
    assert torch.equal(cache.restore_aligned(images[:1], [photo_files])[0].image, in_bytes(1 - images[0]))
    with pytest.raises(StageOneError, match="there are no references"):
        cache.restore_aligned(images[1:], [[]])


def test_what_is_no_faces_fault_is_tried_again(tmp_path, photo_files):
    class Busy(Negative):
        busy = True

        def restore_aligned(self, faces, references):
            if self.busy:
                raise StageOneFailure("out of memory")
            return super().restore_aligned(faces, references)

    inner = Busy()
    cache = Cached(inner, tmp_path / "cache")
    with pytest.raises(StageOneFailure, match="out of memory"):
        cache.fill(faces(2), [photo_files] * 2)
    inner.busy = False
    assert cache.fill(faces(2), [photo_files] * 2) == 2


def test_what_cannot_be_loaded_is_no_faces_fault_and_leaves_no_trace(tmp_path, photo_files):
    missing = SpandrelFace("codeformer", str(tmp_path / "no.pth"), device="cpu")
    missing.__dict__["fingerprint"] = "x"
    with pytest.raises(StageOneError, match="cannot be loaded"):
        Cached(missing, tmp_path / "cache").fill(faces(1, 512), [photo_files])
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_damaged_entry_is_named(tmp_path, photo_files):
    cache = Cached(Negative(), tmp_path / "cache")
    cache.fill(faces(1), [photo_files])
    (entry,) = (tmp_path / "cache").rglob("*.png")
    with Image.open(entry) as file:
        pixels, info = np.array(file), file.text
    pixels[0, 0] += 1
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    for name, value in info.items():
        kept.add_text(name, value)
    Image.fromarray(pixels).save(entry, pnginfo=kept)
    with pytest.raises(ValueError, match="not those written"):
        cache.restore_aligned(faces(1), [photo_files])
    entry.write_bytes(entry.read_bytes()[:60])
    with pytest.raises(ValueError, match="damaged"):
        cache.restore_aligned(faces(1), [photo_files])


def test_faceme_from_the_cache_is_faceme(tmp_path, photo_files):
    settings = {"size": 64, "steps": 2, "device": "cpu"}
    images = faces(2, 64)
    people = [photo_files, photo_files[:1]]
    Cached(FaceMe.tiny(**settings), tmp_path / "cache").fill(images, people)
    hit = Cached(FaceMe.tiny(**settings), tmp_path / "cache", missing="refuse").restore_aligned(images, people)
    fresh = FaceMe.tiny(**settings).restore_aligned(images, people)
    assert all(torch.equal(a.image, b.image) for a, b in zip(hit, fresh, strict=True))


# --- a whole set


@pytest.fixture
def inscene(tmp_path) -> Path:
    """Four training pictures, two of one content, and a fixed pair; every face in the middle."""
    folder, rng = tmp_path / "set", np.random.default_rng(0)
    landmarks = np.zeros((68, 2))
    landmarks[36:42], landmarks[42:48] = (40, 44), (56, 44)
    landmarks[30], landmarks[48], landmarks[54] = (48, 54), (42, 60), (54, 60)
    records = []
    for number in range(5):
        image = folder / f"{number}.png"
        if number == 3:
            image.write_bytes((folder / "2.png").read_bytes())
        else:
            write_png(image, rng.random((96, 96, 3), dtype=np.float32))
        reference = folder / f"r{number}.png"
        write_png(reference, np.full((40, 30, 3), 0.5, np.float32))
        records.append(
            Record(
                image=image.name,
                split="val" if number == 4 else "train",
                identity=f"p{number}",
                prompt="",
                shot="mid-up",
                face_box=(36.0, 36.0, 60.0, 64.0),
                landmarks_68=tuple(map(tuple, landmarks)) if number else None,
                references=(reference.name,),
                similarity=None,
                width=96,
                height=96,
                sha256=sha256_of(image),
                source="test",
                licence="",
                generator={},
            )
        )
    write_png(folder / "lq.png", rng.random((96, 96, 3), dtype=np.float32))
    records[4] = replace(records[4], lq="lq.png", recipe={"operators": []})
    write_manifest(folder, records)
    return folder


def test_a_precomputed_set_feeds_training_and_validation_without_the_restorer(tmp_path, inscene):
    space, inner = Space(), Negative()
    cache = Cached(inner, tmp_path / "cache")
    everything = {"size": 32, "recipes": 2, "splits": ("train", "val", "test")}
    shares = [faces_of(inscene, space, **everything, rank=rank, processes=2) for rank in range(2)]
    assert sum(map(len, shares)) == 2 * 4 + 1
    summaries = [fill(cache, share, batch=3) for share in shares]
    assert sum(s.new for s in summaries) == 2 * 3 + 1, "two pictures of one content need one restoration"
    again = [fill(cache, share, batch=2) for share in shares]
    assert sum(s.new for s in again) == 0 and not any(s.problems for s in again)
    before = list(inner.calls)
    reader = Cached(inner, tmp_path / "cache", missing="refuse")
    options = {"crop": 64, "face_window": (16, 24), "batch": 4, "negatives": 0.2, "dropped": 0.0, "seed": 3}
    batches = SceneBatches(inscene, space, reader, **options, recipes=2)
    for index in range(4):
        batch = batches[index]
        assert not batch["drop"].any() and batch["restored"].shape == batch["degraded"].shape
        # a negative of the degraded face, to what warping there and back takes away
        assert (batch["restored"] + batch["degraded"] - 1).abs().mean() < 0.25
    (pair,) = held_out(inscene, reader, count=1, seed=0)
    assert pair.pair.notes == ("1 references",) and inner.calls == before
    with pytest.raises(FileNotFoundError, match=r"train\.restorer\.batches\.recipes"):
        fresh = SceneBatches(inscene, space, reader, **options)
        fresh[0]


def test_fadex_trains_on_precomputed_faces_without_the_restorer(tmp_path, inscene):
    space, inner = Space(), Negative()
    everything = {"size": 32, "recipes": 1, "splits": ("train", "val")}
    fill(Cached(inner, tmp_path / "cache"), faces_of(inscene, space, **everything), batch=8)
    before = list(inner.calls)
    reader = Cached(inner, tmp_path / "cache", missing="refuse")
    options = {"operators": 2, "pictures": 2, "crop": 16, "seed": 5, "margin": 4}
    restored = FacePairBatches.from_manifest(inscene, "train", space, **options, restore=RestoredBy(reader))[0]
    assert inner.calls == before
    truths = FacePairBatches.from_manifest(inscene, "train", space, **options)[0]
    for side in ("query", "key"):
        a, b = restored[f"{side}_restored"], truths[f"{side}_restored"]
        assert a.shape == b.shape and (a - b).abs().mean() > 0.1
        if side == "query":
            assert torch.equal(restored["query_degraded"][:2], truths["query_degraded"][:2])
    always = RestoredBy(reader, truth_share=1.0)
    same = FacePairBatches.from_manifest(inscene, "train", space, **options, restore=always)[0]
    assert torch.equal(same["query_restored"][:2], truths["query_restored"][:2])


def test_a_face_that_stage_one_refuses_is_trained_on_with_the_null_tokens(inscene):
    class Never(Negative):
        def restore_aligned(self, faces, references):
            raise StageOneError("no")

    options = {"crop": 64, "face_window": (16, 24), "batch": 3, "negatives": 0.0, "dropped": 0.0, "seed": 3}
    batch = SceneBatches(inscene, Space(), Never(), **options)[0]
    assert batch["drop"].all() and torch.equal(batch["restored"], batch["degraded"])


def test_refusals_and_damage_are_summed_up(tmp_path, inscene):
    class Never(Negative):
        def restore_aligned(self, faces, references):
            raise StageOneError("no face in them")

    cache = Cached(Never(), tmp_path / "cache")
    jobs = faces_of(inscene, Space(), size=32, recipes=1, splits=("val",))
    summary = fill(cache, jobs, batch=4)
    assert (summary.seen, summary.refused, dict(summary.reasons)) == (1, 1, {"no face in them": 1})


# --- the scene is restored whatever happens


class Finder:
    """One face in the middle, upright or on its head."""

    def __init__(self, *, upside_down: bool = False):
        self.upside_down = upside_down

    def find(self, image: np.ndarray) -> list[Face]:
        points = np.array([[40.0, 44], [56, 44], [48, 54], [42, 60], [54, 60]])
        return [Face((36.0, 36.0, 60.0, 64.0), 0.9, 96 - points if self.upside_down else points)]


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    from face2scene.fadex.encoder import FaDeX
    from face2scene.mapnet import MapNet
    from face2scene.pipeline import Face2ScenePipeline
    from face2scene.restorer import lora
    from face2scene.restorer.backbone import load_base
    from face2scene.restorer.one_step import OneStepRestorer

    torch.manual_seed(0)
    restorer = OneStepRestorer(
        load_base(tiny_base),
        MapNet(in_channels=8, channels=16, heads=2, width=32),
        vae_rank=2,
        unet_rank=2,
        vae_layers=lora.VAE_ENCODER[:6],
        source=str(tiny_base),
    )
    return Face2ScenePipeline(restorer, FaDeX(widths=(8, 8), strides=(2, 1), embedding=8), detector=Finder())


def test_a_refused_face_falls_back_to_the_null_tokens_and_the_why_log_says_why(pipeline, photo_files):
    pipeline.ref_fr, pipeline.detector = FaceMe.tiny(size=64, steps=1, device="cpu"), Finder()
    picture = torch.rand(3, 96, 96)
    result = pipeline(Scene("a", picture, references=tuple(photo_files)))
    assert result.notes["tokens"] == "pair" and result.measurement.pair.restored.shape == (3, 39, 39)
    assert not torch.equal(result.measurement.pair.restored, result.measurement.pair.degraded)
    black = photo_files[0].with_name("black.png")
    write_png(black, np.zeros((40, 30, 3), np.float32))
    for references, reason in [
        ((), "got none"),
        ((photo_files[0].with_name("gone.png"),), "gone.png is not there"),
        ((black,), "none of the 1 reference pictures shows a face (black.png)"),
    ]:
        plain = pipeline(Scene("a", picture, references=references))
        assert plain.image.shape == picture.shape and plain.notes["tokens"] == "null"
        (warning,) = plain.notes["warnings"]
        assert reason in warning and warning.startswith("The learned null tokens stand in") and "\n" not in warning


def test_several_people_and_an_upside_down_face_are_restored_and_told(pipeline, tmp_path):
    paths = []
    for number, colour in enumerate([(0.9, 0.4, 0.2), (0.1, 0.3, 0.9), (0.9, 0.45, 0.2)]):
        paths.append(tmp_path / f"{number}.png")
        write_png(paths[-1], np.broadcast_to(np.float32(colour), (40, 30, 3)))
    pipeline.ref_fr, pipeline.detector = FaceMe.tiny(size=64, steps=1, device="cpu"), Finder(upside_down=True)
    result = pipeline(Scene("a", torch.rand(3, 96, 96), references=tuple(paths)))
    assert result.notes["tokens"] == "pair" and result.image.shape == (3, 96, 96)
    turned, strangers = result.notes["warnings"]
    assert "turned by 180 degrees" in turned
    assert strangers.endswith("2 of 3 were used, and these left out: 1.png.")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A folder laid out as FaceMe's weights, of tiny networks, whole but for antelopev2."""
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from face2scene.ref_fr.faceme_id import Mix
    from face2scene.ref_fr.faceme_tiny import SDXL_SCHEDULE, tiny_parts

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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(name: str):
    def change(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)

    return change


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("base/unet/diffusion_pytorch_model.safetensors", without("conv_in.weight"), ["unet", "conv_in.weight"]),
        ("controlnet/diffusion_pytorch_model.safetensors", cut, ["controlnet", "not a whole safetensors file"]),
        ("base/vae/config.json", Path.unlink, ["config.json", "vae", "ref_fr.base"]),
        ("base/text_encoder/model.safetensors", without("@first"), ["text_encoder", "missing"]),
        ("base/text_encoder_2/model.safetensors", Path.unlink, ["model.safetensors", "text_encoder_2"]),
        ("base/scheduler/scheduler_config.json", Path.unlink, ["scheduler_config.json", "ref_fr.base"]),
        ("mix.safetensors", without("norm1.bias"), ["mix.safetensors", "norm1.bias"]),
        ("photomaker-v1.bin", cut, ["photomaker-v1.bin", "not a whole checkpoint"]),
        ("antelope", None, ["scrfd_10g_bnkps.onnx", "ref_fr.antelope"]),
    ],
)
def test_the_scene_is_restored_whatever_is_wrong_with_faceme(
    pipeline, released, tmp_path, photo_files, monkeypatch, file, spoil, words
):
    import shutil

    from face2scene.ref_fr import faceme_files, faceme_id
    from face2scene.ref_fr.faceme_id import Mix
    from face2scene.ref_fr.faceme_tiny import tiny_parts

    parts = tiny_parts()
    monkeypatch.setattr(faceme_id, "Mix", lambda: Mix(32, 8))
    monkeypatch.setattr(faceme_id, "IDEncoder", lambda: tiny_parts().id_encoder)
    if "text_encoder" not in file:
        monkeypatch.setattr(faceme_files, "encode_prompts", lambda found, **texts: parts.prompt)
    folder = tmp_path / "released"
    shutil.copytree(released, folder)
    (folder / "antelope").mkdir()
    if spoil:
        name = "@first"
        if spoil.__name__ == "change" and "text_encoder" in file:
            from safetensors import safe_open

            with safe_open(folder / file, "pt") as opened:
                name = next(iter(opened.keys()))
            spoil = without(name)
            words = [*words, name.removeprefix("text_model.")]
        spoil(folder / file)
    pipeline.detector = Finder()
    pipeline.ref_fr = FaceMe.released(
        base=str(folder / "base"),
        controlnet=str(folder / "controlnet"),
        mix=str(folder / "mix.safetensors"),
        photomaker=str(folder / "photomaker-v1.bin"),
        antelope=str(folder / "antelope"),
        size=64,
        device="cpu",
    )
    result = pipeline(Scene("a", torch.rand(3, 96, 96), references=tuple(photo_files)))
    assert result.image.shape == (3, 96, 96) and result.notes["tokens"] == "null"
    (warning,) = result.notes["warnings"]
    assert "\n" not in json.loads(json.dumps(warning))
    for word in words:
        assert word in warning, warning


# --- Real-ESRGAN


def test_the_packaged_real_esrgan_equals_basicsrs_network(weights):
    import types

    from torchvision.transforms import functional

    network = load_real_esrgan(weights("real_esrgan_x4plus"))
    shim = types.ModuleType("torchvision.transforms.functional_tensor")
    shim.rgb_to_grayscale = functional.rgb_to_grayscale
    sys.modules.setdefault(shim.__name__, shim)
    theirs = pytest.importorskip("basicsr.archs.rrdbnet_arch").RRDBNet(3, 3, 4, 64, 23, 32).eval()
    theirs.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(image), theirs(image), atol=1e-6, rtol=0)


def test_the_packaged_real_esrgan_sharpens_a_photo(weights, photo):
    truth = torch.from_numpy(photo[60:156, 180:276].copy()).permute(2, 0, 1)
    restorer = RealESRGAN(weights("real_esrgan_x4plus"), device="cpu")
    restored = restorer.restore(truth, (), truth=None, rng=np.random.default_rng(0))
    assert restored.shape == truth.shape
    small = torch.nn.functional.interpolate(truth[None], size=(24, 24), mode="bicubic", antialias=True)
    bicubic = torch.nn.functional.interpolate(small, size=(96, 96), mode="bicubic")[0]

    def detail(image):
        return (image[:, 1:] - image[:, :-1]).abs().mean()

    assert detail(restored) > 1.2 * detail(bicubic)
    assert (restored - truth).square().mean() < 0.02
    with pytest.raises(ValueError, match="between 1 and 4"):
        RealESRGAN(shrink=5)


def test_a_cut_ncnn_file_is_refused(tmp_path, weights):
    place = weights("real_esrgan_x4plus")
    param = place / "realesrgan-x4plus.param"
    data = (place / "realesrgan-x4plus.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut short at Conv"):
        read_ncnn(param, tmp_path / "cut.bin")
    (tmp_path / "long.bin").write_bytes(data + b"1234")
    with pytest.raises(ValueError, match="4 bytes that"):
        read_ncnn(param, tmp_path / "long.bin")


def test_the_network_has_real_esrgans_convolutions():
    with torch.device("meta"):
        network = RRDBNet()
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 351


# --- somebody else's program

PROGRAM = """
import sys, pathlib
from PIL import Image, ImageOps
source, references, target = map(pathlib.Path, sys.argv[1:4])
assert len(list(references.iterdir())) == int(sys.argv[4])
for path in sorted(source.glob("*.png")):
    (target / "out").mkdir(exist_ok=True)
    ImageOps.invert(Image.open(path)).save(target / "out" / (path.stem + "_r.png"))
    sys.argv[5:] and exec(sys.argv[5])
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)

    def make(count: int, spoil: str = "", **options) -> External:
        command = f"{sys.executable} {path} {{input}} {{references}} {{output}} {count}"
        options = {"version": "1", "outputs": "out/{stem}_r.png", "size": 32} | options
        return External(f"{command} {shlex.quote(spoil)}" if spoil else command, **options)

    return make


def test_any_program_can_be_stage_one(program, photo_files):
    images = faces(3)
    made = program(2).restore_aligned(images, [photo_files] * 3)
    assert all(torch.allclose(m.image, 1 - f, atol=1e-6) for m, f in zip(made, images, strict=True))
    assert len({program(2).fingerprint, program(3).fingerprint, program(2, version="2").fingerprint}) == 3


RESULT = 'target / "out" / (path.stem + "_r.png")'


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (f"({RESULT}).unlink(); print('out of memory')", "left no face_0000_r.png .*out of memory"),
        (f"({RESULT}).unlink(); sys.exit('no GPU')", "failed and left nothing .*code 1, last line: no GPU"),
        (f"({RESULT}).write_text('no')", "left an unreadable face_0000_r.png"),
        (f"Image.new('RGB', (16, 32)).save({RESULT})", "16 x 32, not 32 x 32"),
        (f"Image.new('RGB', (32, 32)).save({RESULT})", "of one colour"),
    ],
)
def test_what_a_program_leaves_is_looked_at(program, photo_files, spoil, reason):
    with pytest.raises(StageOneError, match=reason):
        program(2, spoil).restore_aligned(faces(1), [photo_files])


def test_a_program_that_hangs_is_ended_and_one_that_is_not_there_is_named(program, photo_files):
    start = time.monotonic()
    with pytest.raises(StageOneError, match="longer than 1 s"):
        program(2, "import time; time.sleep(60)", timeout=1).restore_aligned(faces(1), [photo_files])
    assert time.monotonic() - start < 20
    with pytest.raises(StageOneError, match="no_such_program cannot be run"):
        External("no_such_program {input} {output}", version="1", size=32).restore_aligned(faces(1), [photo_files])
    with pytest.raises(ValueError, match="has to hold"):
        External("program", version="1")


def test_instantrestores_folders_are_staged_as_it_reads_them(tmp_path, photo_files):
    listing = tmp_path / "listing.txt"
    script = tmp_path / "s.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        "source, target = map(pathlib.Path, sys.argv[1:3])\n"
        "names = sorted(str(p.relative_to(source)) for p in source.rglob('*.png'))\n"
        f"pathlib.Path({str(listing)!r}).write_text(' '.join(names))\n"
        "[shutil.copy(d / 'degraded.png', target / f'{d.name}.png') for d in source.iterdir()]\n"
    )
    adapter = External(
        f"{sys.executable} {script} {{input}} {{output}}", version="1", layout="identity", references=4, size=32
    )
    image = faces(1)
    assert torch.equal(adapter.restore_aligned(image, [photo_files])[0].image, image[0])
    conditioning = [f"face_0000/conditioning/reference_{n:02d}.png" for n in range(4)]
    assert listing.read_text().split() == [*conditioning, "face_0000/degraded.png", "face_0000/gt.png"]
    with pytest.raises(StageOneError, match="needs references"):
        adapter.restore_aligned(image, [[]])


# --- spandrel


def random_weights(kind: str, path: Path) -> None:
    if kind == "codeformer":
        arch = pytest.importorskip("spandrel_extra_arches.architectures.CodeFormer").CodeFormer
    else:
        arch = pytest.importorskip("spandrel.architectures.RestoreFormer").RestoreFormer
    torch.manual_seed(0)
    torch.save({"params_ema": arch().state_dict()}, path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "other"), [("codeformer", "restoreformer"), ("restoreformer", "codeformer")])
def test_the_released_architecture_runs_through_spandrel(tmp_path, kind, other):
    random_weights(kind, tmp_path / "r.pth")
    model = SpandrelFace(kind, str(tmp_path / "r.pth"), device="cpu")
    face = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16), size=(512, 512), mode="bicubic")
    made = model.restore_aligned(in_bytes(face), [[]])[0].image
    with torch.inference_mode():
        options = {"weight": 0.5} if kind == "codeformer" else {}
        known = model._network(in_bytes(face) * 2 - 1, **options)[0] / 2 + 0.5
    assert torch.equal(made, in_bytes(known)[0]) and made.std() > 0.001
    with pytest.raises(StageOneFailure, match=f"not a {other}"):
        SpandrelFace(other, str(tmp_path / "r.pth"), device="cpu").ready()


def test_a_missing_package_and_a_cut_file_are_said(tmp_path, monkeypatch):
    (tmp_path / "r.pth").write_bytes(b"PK cut")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(StageOneFailure, match=r"pip install 'face2scene\[restorers\]'"):
        SpandrelFace("restoreformer", str(tmp_path / "r.pth"), device="cpu").ready()
    monkeypatch.undo()
    pytest.importorskip("spandrel")
    with pytest.raises(StageOneFailure, match=r"r\.pth is not a whole checkpoint"):
        SpandrelFace("restoreformer", str(tmp_path / "r.pth"), device="cpu").ready()


def test_a_plain_crop_is_restored_too(photo_files):
    crop = torch.rand(3, 40, 40)
    restored = Negative().restore(crop, photo_files, truth=None, rng=np.random.default_rng(0))
    assert restored.shape == crop.shape
    pair = face_pair(Negative(), crop, (0, 0, 40, 40), references=photo_files, rng=np.random.default_rng(0))
    assert torch.equal(pair.restored, restored) and pair.notes == ("2 references",)


def test_the_restored_face_can_be_read_back_from_a_file(tmp_path):
    image = faces(1)[0]
    write_png(tmp_path / "x.png", image)
    assert torch.equal(read_tensor(tmp_path / "x.png"), image)
