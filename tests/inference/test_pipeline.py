import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import RELOADED

from face2scene.common.types import Face, Scene
from face2scene.image_io.arrays import read_image, read_tensor, resize, to_tensor, write_png
from face2scene.image_io.photos import Photo, read_photo, write_photo
from face2scene.inference.batch import restore_folder
from face2scene.inference.degradation_estimator import select_textured_patches
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import RestorationTask, find_tasks, passed_over
from face2scene.ref_fr import Copy, GroundTruth, Perturbed, face_pair

BOX = (8.0, 8.0, 32.0, 32.0)


class FixedFaceDetector:
    """Finds the same face everywhere."""

    def find(self, image: np.ndarray) -> list[Face]:
        return [Face(BOX, 0.9, np.zeros((5, 2)), identity=np.array([1.0, 0.0]), identity_model="test")]


@pytest.fixture
def model_folder(tiny_pipeline, tmp_path):
    return shutil.copytree(tiny_pipeline, tmp_path / "model")


@pytest.fixture
def photo_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_png(tmp_path / "photos" / f"{name}.png", rng.random((40, 48, 3), dtype=np.float32))
    return tmp_path / "photos"


def scene(photo_folder, name="a") -> Scene:
    return Scene(name, read_tensor(photo_folder / f"{name}.png"))


def test_output_keeps_size_and_notes(make_pipeline, photo_folder):
    pipeline = make_pipeline(ref_fr=Copy(), detector=FixedFaceDetector())
    result = pipeline(scene(photo_folder))
    assert result.image.shape == (3, 40, 48)
    assert result.notes["tokens"] == "pair" and result.notes["faces"][0]["box"] == list(BOX)
    assert result.notes["warnings"] == [] and result.notes["tiles"]["rows"] == 1
    json.dumps(result.notes)  # goes into the restoration log as it is


def test_null_tokens_stand_in_without_stage_one(make_pipeline, photo_folder):
    result = make_pipeline()(scene(photo_folder))
    assert result.notes["tokens"] == "null" and "there is no Stage I" in result.notes["warnings"][0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ref_fr": Copy()}, "there is no face detector"),
        ({"ref_fr": GroundTruth(), "detector": FixedFaceDetector()}, "made from the ground truth and none was given"),
    ],
)
def test_chosen_stage_one_works_or_fails(make_pipeline, photo_folder, tmp_path, options, reason):
    pipeline = make_pipeline(**options)
    for use in (
        pipeline.ready,
        lambda: pipeline(scene(photo_folder)),
        lambda: restore_folder(pipeline, find_tasks(photo_folder), tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=reason):
            use()
    assert not list(tmp_path.glob("out/images/*"))


def test_grey_comes_back_neutral_before_saving(make_pipeline, tmp_path):
    pipeline = make_pipeline(colour="none")
    levels = np.random.default_rng(0).integers(0, 255, (40, 48), dtype=np.uint8)
    Image.fromarray(np.dstack([levels] * 3)).save(tmp_path / "a.jpg", quality=60)
    for image in (tmp_path / "a.jpg", levels, np.dstack([levels] * 3), Image.open(tmp_path / "a.jpg").convert("RGB")):
        restored = pipeline(image, scale=2).image
        assert torch.equal(restored[0], restored[1]) and torch.equal(restored[0], restored[2])
    near = levels[..., None] // 4 + np.array([0, 0, 9])
    restored = pipeline(near.astype(np.uint8)).image
    assert not torch.equal(restored[0], restored[2])  # a tint is no grey


def test_face_pair_is_cut_at_box(photo_folder):
    image, gt = scene(photo_folder, "a").image, scene(photo_folder, "b").image
    pair = face_pair(GroundTruth(), image, BOX, gt=gt, rng=np.random.default_rng(0))
    assert torch.equal(pair.degraded, image[:, 8:32, 8:32]) and torch.equal(pair.restored, gt[:, 8:32, 8:32])


def test_perturbed_face_is_near_gt(photo_folder):
    gt = scene(photo_folder).image
    restored = Perturbed().restore(gt, (), gt=gt, rng=np.random.default_rng(0))
    again = Perturbed().restore(gt, (), gt=gt, rng=np.random.default_rng(0))
    assert torch.equal(restored, again) and restored.shape == gt.shape
    assert 0.005 < (restored - gt).abs().mean() < 0.25
    plain = Perturbed(softness=1, tint=0, grain=0).restore(gt, (), gt=gt, rng=np.random.default_rng(0))
    torch.testing.assert_close(plain, gt, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="give gt=FOLDER"):
        Perturbed().restore(gt, (), gt=None, rng=np.random.default_rng(0))


def test_large_image_is_tiled(make_pipeline, photo_folder):
    pipeline = make_pipeline(tile=32, overlap=8)
    result = pipeline(scene(photo_folder))
    assert result.notes["tiles"] == {"rows": 2, "columns": 3, "size": 32, "overlap": 8, "statistics": "shared"}
    assert result.image.shape == (3, 40, 48) and torch.isfinite(result.image).all()


def test_max_face_size_crops_centre(make_pipeline):
    pipeline = make_pipeline(ref_fr=Copy(), max_face_size=16)
    pair = pipeline.estimate(Scene("x", torch.rand(3, 64, 64)), box=(0, 0, 64, 64)).pair
    assert pair.box == (24, 24, 40, 40)


def test_no_face_estimate_uses_image_patches(make_pipeline, photo_folder):
    pipeline = make_pipeline(fallback="blind", max_face_size=16)
    result = pipeline(scene(photo_folder))
    assert result.token_source == "blind" and "4 square(s) of the image" in result.notes["warnings"][0]
    assert result.estimate.pair is None and len(result.estimate.face_estimates) == 4
    null = make_pipeline()(scene(photo_folder))
    assert not torch.equal(result.estimate.tokens.tokens, null.estimate.tokens.tokens)
    tiny = pipeline(torch.rand(3, 5, 9))  # too small for FaDeX
    assert tiny.token_source == "null" and tiny.image.shape == (3, 5, 9)


def test_textured_patches_are_selected():
    image = torch.full((3, 40, 60), 0.5)
    image[:, 22:38, 41:57] = torch.rand(3, 16, 16)
    assert select_textured_patches(image, 20, 1) == [(40, 20, 60, 40)]
    assert len(select_textured_patches(image, 20, 99)) == 6


@pytest.mark.numerics
def test_input_types_give_same_result(make_pipeline, photo_folder):
    pipeline = make_pipeline()
    path = photo_folder / "a.png"
    levels = np.asarray(Image.open(path))
    kinds = [
        path,
        str(path),
        Image.open(path),
        levels,
        levels.astype(np.float32) / 255,
        to_tensor(levels),
        scene(photo_folder),
    ]
    results = [pipeline(kind) for kind in kinds]
    assert all(torch.equal(results[0].image, other.image) for other in results[1:])
    for wrong, reason in (
        (levels.astype(np.float32), "divide bytes by 255"),
        (levels[..., :2], r"must be \(H, W\)"),
        (levels.astype(np.int64), "uint8, uint16 or floats"),
    ):
        with pytest.raises(ValueError, match=reason):
            pipeline(wrong)
    with pytest.raises(TypeError, match="Several go in one list"):
        pipeline({"a": path})


@pytest.mark.numerics
def test_list_matches_single_calls(make_pipeline, photo_folder):
    pipeline = make_pipeline(ref_fr=Perturbed(), detector=FixedFaceDetector())
    pipeline.ref_fr = NoisyStageOne()
    paths = [photo_folder / f"{name}.png" for name in "abc"]
    alone = [pipeline(path, seed=3) for path in paths]
    together = pipeline(list(reversed(paths)), seed=3)[::-1]
    assert all(torch.equal(one.image, other.image) for one, other in zip(alone, together, strict=True))
    assert not torch.equal(pipeline(paths[0], seed=4).estimate.pair.restored, alone[0].estimate.pair.restored)
    with pytest.raises(ValueError, match="belong to one image"):
        pipeline(paths, name="x")


class NoisyStageOne(Copy):
    """Stage I with randomness of its own."""

    def restore(self, degraded, references, *, gt, rng):
        return (degraded + torch.from_numpy(rng.normal(0, 0.1, degraded.shape).astype(np.float32))).clamp(0, 1)


def test_alpha_depth_and_odd_sizes_are_kept(make_pipeline, tmp_path):
    image = np.random.default_rng(0).random((23, 41, 4)).astype(np.float32)
    result = make_pipeline()((image * 65535).astype(np.uint16), scale=1.5)
    result.save(tmp_path / "a.png")
    back = read_photo(tmp_path / "a.png")
    assert back.image.shape == (34, 62, 3) and back.bits == 16 and back.alpha.shape == (34, 62)
    assert result.pil.size == (62, 34) and result.seconds.keys() >= {"faces", "restore"}
    for size in ((1, 1), (1, 33), (33, 1)):
        assert make_pipeline()(torch.rand(3, *size)).image.shape == (3, *size)


def test_save_pretrained_round_trip(model_folder, photo_folder, tmp_path):
    pipeline = Face2ScenePipeline.from_pretrained(
        model_folder, ref_fr=Copy(), detector=FixedFaceDetector(), token_aggregation="mean", tile=32, overlap=8
    )
    before = pipeline(scene(photo_folder))
    pipeline.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        *("README.md", "face2scene.json", "restorer.safetensors", "fadex.safetensors")
    }
    card = (tmp_path / "saved/README.md").read_text()
    assert "library_name: face2scene" in card and "was `copy`" in card and "| `tile` | 32 |" in card
    again = Face2ScenePipeline.from_pretrained(tmp_path / "saved", ref_fr=Copy(), detector=FixedFaceDetector())
    assert again.options == pipeline.options
    torch.testing.assert_close(again(scene(photo_folder)).image, before.image, **RELOADED["fp32"])
    assert Face2ScenePipeline.from_pretrained(tmp_path / "saved", tile=None).options.tile is None
    with pytest.raises(FileNotFoundError, match=r"no restorer\.safetensors and no fadex\.safetensors"):
        Face2ScenePipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="the hub did not have it"):
        Face2ScenePipeline.from_pretrained("nobody/nothing")


def test_cast_and_offload_keep_output(model_folder, photo_folder):
    pipeline = Face2ScenePipeline.from_pretrained(model_folder)
    before = pipeline(scene(photo_folder)).image
    assert pipeline.enable_model_cpu_offload("cpu") is pipeline
    torch.testing.assert_close(pipeline(scene(photo_folder)).image, before)
    half = pipeline.to("cpu", torch.bfloat16)
    assert half.dtype == torch.bfloat16 and next(half.fadex.parameters()).dtype == torch.float32
    assert (half(scene(photo_folder)).image - before).abs().mean() < 0.05
    assert Face2ScenePipeline.from_pretrained(model_folder, dtype="bf16").dtype == torch.bfloat16


def test_progress_reports_stages_and_aborts(make_pipeline, photo_folder):
    pipeline = make_pipeline(ref_fr=Copy(), detector=FixedFaceDetector())
    seen = []
    pipeline(photo_folder / "a.png", progress=lambda *step: seen.append(step))
    assert [step[0] for step in seen] == ["faces", "stage one", "encoding", "denoising", "decoding"]

    def enough(stage, done, total):
        if stage == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(photo_folder / "a.png", progress=enough)


@pytest.mark.parametrize("options", [{"token_aggregation": "best"}, {"fallback": "guess"}, {"colour": "histogram"}])
def test_unknown_option_raises(make_pipeline, options):
    with pytest.raises(ValueError, match="must be one of"):
        make_pipeline(**options)


def restore_and_read_log(pipeline, tasks, output, **options):
    return restore_folder(pipeline, tasks, output, **options), [
        json.loads(line) for line in (output / RESTORATION_LOG).read_text().splitlines()
    ]


def test_corrupt_file_fails_alone(make_pipeline, photo_folder, tmp_path):
    (photo_folder / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    pipeline = make_pipeline()
    result, log = restore_and_read_log(pipeline, find_tasks(photo_folder), tmp_path / "out")
    assert result.restored == 3 and "cannot be read as an image" in result.failed["broken.jpg"]
    assert [line["name"] for line in log if "failed" not in line] == ["a.png", "b.png", "c.png"]
    assert [line for line in log if "failed" in line] == [{"name": "broken.jpg", "failed": result.failed["broken.jpg"]}]


def test_truncated_log_line_is_redone(make_pipeline, photo_folder, tmp_path):
    pipeline, out = make_pipeline(), tmp_path / "out"
    restore_and_read_log(pipeline, find_tasks(photo_folder), out)
    before = (out / "images/a.png").stat().st_mtime_ns
    text = (out / RESTORATION_LOG).read_text()
    (out / RESTORATION_LOG).write_text(text[:-20])  # as a kill would leave it
    (out / "images/b.png").unlink()
    result, log = restore_and_read_log(pipeline, find_tasks(photo_folder), out)
    assert (result.restored, result.skipped) == (2, 1)
    assert (out / "images/a.png").stat().st_mtime_ns == before
    assert sorted({line["name"] for line in log}) == ["a.png", "b.png", "c.png"]


@pytest.mark.numerics
def test_result_is_independent_of_order(make_pipeline, photo_folder, tmp_path):
    pipeline = make_pipeline(ref_fr=Perturbed(), detector=FixedFaceDetector())
    tasks = find_tasks(photo_folder, gt=photo_folder)
    restore_folder(pipeline, tasks, tmp_path / "all")
    restore_folder(pipeline, list(reversed(tasks))[:2], tmp_path / "two")
    assert (tmp_path / "all/images/c.png").read_bytes() == (tmp_path / "two/images/c.png").read_bytes()
    assert (tmp_path / "all/faces/c_restored.png").exists()


def test_tokens_can_come_from_other_image(make_pipeline, photo_folder, tmp_path):
    pipeline = make_pipeline(ref_fr=Perturbed(), detector=FixedFaceDetector())
    tasks = find_tasks(photo_folder, gt=photo_folder)
    _, log = restore_and_read_log(pipeline, tasks, tmp_path / "other", tokens_from="other")
    assert [line["tokens_from"] for line in log] == ["b.png", "c.png", "a.png"]
    with pytest.raises(ValueError, match="own, other, null"):
        restore_folder(pipeline, tasks, tmp_path / "x", tokens_from="mine")


def test_invalid_input_raises(make_pipeline, photo_folder, tmp_path):
    pipeline = make_pipeline()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in"):
        find_tasks(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no image named a in gt="):
        find_tasks(photo_folder, gt=tmp_path / "empty")
    with pytest.raises(ValueError, match="would overwrite the images it reads"):
        restore_folder(pipeline, [RestorationTask(tmp_path / "out/images/a.png")], tmp_path / "out")
    shutil.copy(photo_folder / "a.png", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"more than once.*\['a.png'\]"):
        find_tasks([photo_folder / "a.png", tmp_path / "empty"])


def test_same_stem_other_suffix_are_all_restored(make_pipeline, tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    for name in ("IMG_1.JPG", "IMG_1.png", "IMG_2.jpeg", "sub/IMG_1.JPG"):
        Image.new("RGB", (24, 24), "red").save(tmp_path / "in" / name)
    result, _ = restore_and_read_log(make_pipeline(), find_tasks(tmp_path / "in"), tmp_path / "out")
    made = [path.relative_to(tmp_path / "out/images").as_posix() for path in (tmp_path / "out/images").rglob("*.png")]
    assert result.restored == 4
    assert sorted(made) == ["IMG_1_jpg.png", "IMG_1_png.png", "IMG_2.png", "sub/IMG_1.png"]


def test_unknown_suffixes_are_counted(tmp_path):
    image = Image.fromarray(np.full((24, 32, 3), 200, np.uint8))
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "gif": "GIF", "bmp": "BMP", "avif": "AVIF"}
    for suffix, kind in kinds.items():
        image.save(tmp_path / f"{suffix}.{suffix}", format=kind)
    for name in ("notes.txt", "more.TXT", "scene.xcf", "README", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    tasks = find_tasks(tmp_path)
    assert sorted(task.name for task in tasks) == sorted(kinds)
    assert all(np.abs(read_image(task.path) - 200 / 255).max() < 3 / 255 for task in tasks)  # JPEG and AVIF are lossy
    assert passed_over(tmp_path) == "passed over: 1 without suffix, 2 .txt, 1 .xcf"
    (tmp_path / "only").mkdir()
    (tmp_path / "only/scene.xcf").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no image in .*only \(input\); passed over: 1 \.xcf"):
        find_tasks(tmp_path / "only")


def test_closed_folders_are_counted_and_named(tmp_path, monkeypatch, caplog):
    for name in ("open", "closed/deeper"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.full((24, 32, 3), 200, np.uint8)).save(tmp_path / name / "a.png")
    scandir = os.scandir

    def refusing(path):  # permissions do not bind the administrator, who may run the tests
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [task.name for task in find_tasks(tmp_path)] == ["open/a"]
    assert f"{tmp_path / 'closed'} cannot be opened (Permission denied)" in caplog.text
    assert (
        passed_over(tmp_path)
        == f"passed over: 1 folder(s), link(s) or pipe(s) that cannot be opened ({tmp_path / 'closed'})"
    )
    with pytest.raises(FileNotFoundError, match=r"no image.*; passed over: 1 folder\(s\), link\(s\)"):
        find_tasks(tmp_path / "closed")


def test_links_that_lead_nowhere_are_named(tmp_path, caplog):
    image = Image.fromarray(np.full((24, 32, 3), 200, np.uint8))
    (tmp_path / "in/sub").mkdir(parents=True)
    image.save(tmp_path / "in/a.png")
    (tmp_path / "in/linked.png").symlink_to(tmp_path / "in/a.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "in/pipe.png")
    (tmp_path / "in/zeros.png").symlink_to("/dev/zero")
    (tmp_path / "in/sub/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    assert [task.name for task in find_tasks(tmp_path / "in")] == ["a", "linked"]
    assert "gone.png cannot be opened (the link leads to nothing)" in caplog.text
    for name in ("pipe.png", "zeros.png"):
        assert f"{name} cannot be opened (a pipe, socket or device)" in caplog.text
    assert "loop cannot be opened (links to folders are not followed)" in caplog.text
    assert passed_over(tmp_path / "in").startswith("passed over: 4 folder(s), link(s) or pipe(s)")


def test_names_that_differ_in_case_are_told_apart(tmp_path):
    for name in ("a.jpg", "a.JPG", "A.png", "a_jpg.png", "caf\u00e9.png", "cafe\u0301.png", "b.png"):
        Image.fromarray(np.full((24, 32, 3), 200, np.uint8)).save(tmp_path / name)
    names = [task.name for task in find_tasks(tmp_path)]
    assert names == ["A_png", "a_jpg_2", "a_jpg_3", "a_jpg", "b", "cafe\u0301_png", "caf\u00e9_png_2"]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == 7


def test_unicode_names_are_kept(make_pipeline, tmp_path):
    name = "Ünï — 写真 😀 photo"
    write_png(tmp_path / "in" / f"{name}.png", np.full((24, 24, 3), 0.5, dtype=np.float32))
    pipeline = make_pipeline()
    result, _ = restore_and_read_log(pipeline, find_tasks(tmp_path / "in"), tmp_path / "out")
    assert result.restored == 1 and (tmp_path / "out/images" / f"{name}.png").exists()


def test_output_keeps_format_and_scales_size(make_pipeline, tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    image = rng.random((21, 35, 3), dtype=np.float32)
    alpha = np.linspace(0, 1, 21 * 35, dtype=np.float32).reshape(21, 35)
    write_photo(tmp_path / "in/deep.tif", image, like=Photo(image, alpha, bits=16))
    write_photo(tmp_path / "in/grey.jpg", image, like=Photo(image, grey=True))
    Image.new("RGB", (35, 21), (90, 9, 9)).save(tmp_path / "in/old.bmp")
    pipeline = make_pipeline()
    result, log = restore_and_read_log(
        pipeline, find_tasks(tmp_path / "in"), tmp_path / "out", scale=1.5, file_format="same"
    )
    assert result.failed == {}
    assert [line["output"] for line in log] == ["images/deep.tif", "images/grey.jpg", "images/old.png"]
    deep, grey = read_photo(tmp_path / "out/images/deep.tif"), read_photo(tmp_path / "out/images/grey.jpg")
    assert deep.bits == 16 and deep.alpha.shape == deep.image.shape[:2] == (32, 52) and grey.grey
    back = resize(to_tensor(deep.alpha[..., None].repeat(3, 2)), (21, 35))[0].numpy()
    assert np.abs(back - alpha).mean() < 0.05  # enlarged and shrunk again, in its own place
    for option in ({"scale": 0}, {"file_format": "gif"}):
        with pytest.raises(ValueError, match=r"it must be above 0|must be one of png"):
            restore_folder(pipeline, find_tasks(tmp_path / "in"), tmp_path / "x", **option)


def test_wrong_or_truncated_weights_raise(model_folder):
    with pytest.raises(ValueError, match="holds 'fadex', not 'restorer'"):
        Face2ScenePipeline.from_files(model_folder / "fadex.safetensors", model_folder / "fadex.safetensors")
    (model_folder / "restorer.safetensors").write_bytes((model_folder / "restorer.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Face2ScenePipeline.from_pretrained(model_folder)
