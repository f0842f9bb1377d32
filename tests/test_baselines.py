"""Other people's methods through one door: staged, started as a process, judged by what they leave."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from face2scene.eval.adapters import Adapter, AdapterError, stems
from face2scene.eval.baselines import commands, import_folder, run_command, run_here
from face2scene.eval.predict import Bicubic, RealESRGANx4, predict_folder
from face2scene.eval.score import score_folder
from face2scene.eval.staging import StagingError, lay_out, scale_of
from face2scene.folders import Job
from face2scene.images import read_tensor, resize, write_png
from face2scene.runs import REPOSITORY

BASELINES = sorted(path.stem for path in (REPOSITORY / "configs/baseline").glob("*.yaml"))
# A program like the others: reads every file of a folder, enlarges, writes under names of its own, keeps a journal.
PROGRAM = """
import json, os, sys
from PIL import Image
source, target, scale, seed, how = sys.argv[1:6]
os.makedirs(target, exist_ok=True)
print("loading weights", os.environ["CUDA_VISIBLE_DEVICES"], os.environ["HF_HUB_OFFLINE"], flush=True)
names = sorted(os.listdir(source))
for number, name in enumerate(names):
    image = Image.open(os.path.join(source, name)).convert("RGB")
    stem = name.split(".")[0]
    if how == "crash" and number == 1:
        sys.exit("CUDA out of memory")
    if how == "omit" and number == 1:
        continue
    size = [int(scale) * side for side in image.size]
    if how == "rounded" and number == 0:
        size = [side - 8 for side in size]
    made = image.resize(size, Image.BICUBIC)
    if how == "black" and number == 1:
        made = Image.new("RGB", size)
    made.save(os.path.join(target, stem + "_0.png"))
    if how == "cut" and number == 1:
        with open(os.path.join(target, stem + "_0.png"), "r+b") as file:
            file.truncate(60)
if how == "scorer":
    import no_such_scorer
"""


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    """Three scenes of different sizes, with their truth."""
    rng = np.random.default_rng(0)
    made = []
    for name, size in (("a b.1", (48, 64)), ("a.b 1", (44, 40)), ("c", (37, 50))):
        truth = tmp_path / "truth" / f"{name}.png"
        write_png(truth, rng.random((*size, 3), dtype=np.float32))
        path = tmp_path / "lq" / f"{name}.png"
        write_png(path, rng.random((*size, 3), dtype=np.float32))
        made.append(Job(path, truth=truth))
    return made


@pytest.fixture
def fake(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "tools").mkdir(parents=True)
    (checkout / "tools/test.py").write_text(PROGRAM)
    (checkout / "weights.bin").write_bytes(b"weights")

    def build(how: str = "good", **changes) -> Adapter:
        described = {
            "title": "Fake",
            "python": sys.executable,
            "checkout": str(checkout),
            "folder": "tools",
            "command": "{python} test.py {input} {output} {scale} {seed} {how}",
            "options": {"how": how},
            "output": "{stem}_0.png",
            "weights": [{"path": "weights.bin", "source": "nowhere", "licence": "none"}],
        }
        return Adapter.from_dict(described | changes)

    return build


def record(folder: Path) -> dict:
    return json.loads((folder / "baseline.json").read_text())


def test_a_program_restores_clean_copies_and_everything_about_it_is_written_down(tmp_path, jobs, fake):
    out = tmp_path / "out"
    outcome = run_command(fake(), jobs, out, seed=7, gpu="1")
    assert (
        outcome.complete
        and outcome.made == 3
        and sorted(p.stem for p in (out / "images").iterdir()) == sorted(job.path.stem for job in jobs)
    )
    for job in jobs:  # the program does nothing at scale 1, so each picture must come back as it was
        assert torch.equal(read_tensor(out / "images" / job.path.name), read_tensor(job.path))
    kept = record(out)
    (launch,) = kept["launches"]
    assert launch["command"][1:] == ["test.py", "SCRATCH/input", "SCRATCH/output", "1", "7", "good"]
    assert launch["exit_code"] == 0 and launch["seconds"] > 0 and launch["peak_memory_mib"] > 5
    assert launch["seconds_per_picture"] == pytest.approx(launch["seconds"] / 3, abs=0.01)
    assert kept["seed"] == 7 and kept["size_mode"] == "same size" and kept["complete"] is True
    assert kept["interpreter"]["python"].startswith("3.") and kept["checkout"]["commit"] == "unknown"
    assert list(kept["weights_sha256"]) == ["weights.bin"] and len(kept["weights_sha256"]["weights.bin"]) == 64
    assert "loading weights 1 1" in (out / "log.txt").read_text()

    scores = score_folder(out, {job.path.stem: job.truth for job in jobs}, ["psnr"])
    assert scores["complete"] and scores["counts"]["scored"] == 3
    again = run_command(fake(), jobs, out, seed=7, gpu="1")
    assert again.finished_before == 3 and again.made == 0 and len(record(out)["launches"]) == 1
    with pytest.raises(ValueError, match=r"made otherwise \(different: seed\)"):
        run_command(fake(), jobs, out, seed=8)


@pytest.mark.parametrize(
    ("how", "made", "reason"),
    [
        ("crash", 1, r"no a_b_1_n00001_0\.png was left \(exit code 1, last line: CUDA out of memory\)"),
        ("omit", 2, r"no a_b_1_n00001_0\.png was left"),
        ("black", 2, r"one colour all over, which is how NaN looks"),
        ("rounded", 2, r"a_b_1_0\.png is 56 x 40 and should be 64 x 48"),
        ("cut", 2, r"cannot be read"),
    ],
)
def test_a_bad_picture_is_named_and_makes_the_row_incomplete(tmp_path, jobs, fake, how, made, reason):
    out = tmp_path / "out"
    outcome = run_command(fake(how), jobs, out)
    assert not outcome.complete and outcome.made == made and "INCOMPLETE" in str(outcome)
    import re

    assert any(re.search(reason, sentence) for sentence in outcome.missing.values()), outcome.missing
    assert record(out)["complete"] is False and record(out)["missing"] == outcome.missing
    scores = score_folder(out, {job.path.stem: job.truth for job in jobs}, ["psnr"])
    assert scores["complete"] is False and scores["means"] == {}, "a mean over fewer pictures is no mean"


def test_a_bad_exit_code_with_good_pictures_is_no_failure_unless_it_is_trusted(tmp_path, jobs, fake):
    outcome = run_command(fake("scorer"), jobs, tmp_path / "out")
    assert outcome.complete and record(tmp_path / "out")["launches"][0]["exit_code"] == 1
    outcome = run_command(fake("scorer", trust_exit=True), jobs, tmp_path / "trusted")
    assert len(outcome.missing) == 3 and "no_such_scorer" in next(iter(outcome.missing.values()))


def test_only_what_is_missing_is_made_again(tmp_path, jobs, fake):
    out = tmp_path / "out"
    run_command(fake("omit"), jobs, out)
    (tmp_path / "checkout/tools/test.py").write_text(PROGRAM.replace('how == "omit"', 'how == "mended"'))
    outcome = run_command(fake("omit"), jobs, out)
    assert outcome.complete and (outcome.made, outcome.finished_before) == (1, 2)
    assert [launch["pictures"] for launch in record(out)["launches"]] == [2, 1]


def test_a_method_that_only_knows_x4_sees_a_quarter_and_gives_the_size_back(tmp_path, jobs, fake):
    out = tmp_path / "out"
    assert run_command(fake(sizes="x4"), jobs, out).complete
    for job in jobs:
        made, given = read_tensor(out / "images" / job.path.name), read_tensor(job.path)
        assert made.shape == given.shape
        assert made.std() < 0.7 * given.std(), "noise that went through a quarter of the size is not the input"
    assert (
        record(out)["shrunk_by"].startswith("antialiased bicubic") and record(out)["launches"][0]["command"][-3] == "4"
    )
    rows = lay_out(fake(sizes="x4"), jobs, 1)
    assert [row.size for row in rows] == [(12, 16), (11, 10), (10, 13)]
    assert rows[2].expected == (40, 52) and rows[2].kept == (37, 50)


def test_quarters_become_four_times_as_large(tmp_path, jobs, fake):
    small = []
    for job in jobs:
        path = tmp_path / "small" / job.path.name
        write_png(path, resize(read_tensor(job.path)[..., :36, :40], (9, 10)))
        truth = tmp_path / "cut" / job.path.name
        write_png(truth, read_tensor(job.truth)[..., :36, :40])
        small.append(Job(path, truth=truth))
    assert scale_of(small, None, None) == 4 and scale_of(jobs, None, None) == 1
    with pytest.raises(StagingError, match="truth is 4 times as large as the input and scale is 1"):
        scale_of(small, None, 1)
    with pytest.raises(StagingError, match=r"times as large as the input and scale is None"):
        scale_of([small[0], jobs[0]], None, None)
    for sizes in ("any", "x4"):
        assert run_command(fake(sizes=sizes), small, tmp_path / sizes, scale=4).complete
        assert read_tensor(tmp_path / sizes / "images/c.png").shape == (3, 36, 40)
        assert record(tmp_path / sizes)["shrunk_by"] is None


def test_sides_are_padded_for_programs_that_round_them_and_another_size_may_be_resized(tmp_path, jobs, fake):
    assert [row.size for row in lay_out(fake(multiple=8), jobs, 1)] == [(48, 64), (48, 40), (40, 56)]
    out = tmp_path / "out"
    outcome = run_command(fake("rounded", multiple=8, other_sizes="resize"), jobs, out)
    assert outcome.complete and outcome.notes == {"a b.1": "resized from 56 x 40"} == record(out)["notes"]
    assert torch.equal(read_tensor(out / "images/c.png"), read_tensor(jobs[2].path))  # padded, cut, untouched


def test_faces_go_by_person_and_scenes_are_refused(tmp_path, jobs, fake):
    with pytest.raises(StagingError, match=r"aligned faces.*a b\.1\.png is 64 x 48"):
        lay_out(fake(sizes="face"), jobs, 1)
    rng = np.random.default_rng(1)
    people = {name: tmp_path / f"{name}.png" for name in ("ann", "bob")}
    for path in people.values():
        write_png(path, rng.random((20, 20, 3), dtype=np.float32))
    faces = []
    for number, person in enumerate(("ann", "bob", "ann")):
        path = tmp_path / f"faces/f{number}.png"
        write_png(path, rng.random((256, 256, 3), dtype=np.float32))
        faces.append(Job(path, people={person: (people[person],)}))
    adapter = fake(
        sizes="face",
        per_identity=True,
        command="{python} test.py {input} {output} {scale} {seed} {how} {references}",
        references=2,
    )
    shown = commands(adapter, lay_out(adapter, faces, 1), scale=1, seed=0)
    assert len(shown) == 2 and shown[0].endswith("# 2 pictures") and "CUDA_VISIBLE_DEVICES=0" in shown[0]
    outcome = run_command(adapter, faces, tmp_path / "out")
    assert outcome.complete and read_tensor(tmp_path / "out/images/f1.png").shape == (3, 256, 256)
    assert [launch["pictures"] for launch in record(tmp_path / "out")["launches"]] == [2, 1]
    with pytest.raises(StagingError, match="needs references"):
        run_command(adapter, [Job(faces[0].path)], tmp_path / "none")


def test_identity_folders_hold_what_instantrestore_reads(tmp_path, fake):
    rng = np.random.default_rng(1)
    face, person = tmp_path / "face.png", tmp_path / "person.png"
    for path in (face, person):
        write_png(path, rng.random((512, 512, 3), dtype=np.float32))
    program = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "for folder in Path(sys.argv[1]).iterdir():\n"
        "    assert sorted(p.name for p in folder.iterdir()) == ['conditioning', 'degraded.png', 'gt.png']\n"
        "    assert len(list((folder / 'conditioning').iterdir())) == 4\n"
        "    Image.open(folder / 'degraded.png').save(Path(sys.argv[2]) / (folder.name + '.png'))\n"
    )
    adapter = fake(
        sizes="face",
        layout="identity",
        references=4,
        output="{stem}.png",
        files={"driver.py": program},
        command="{python} {scratch}/driver.py {input} {output}",
    )
    outcome = run_command(adapter, [Job(face, people={"person": (person,)})], tmp_path / "out")
    assert outcome.complete, outcome.missing


def test_what_is_missing_is_listed_with_the_option_to_set_and_nothing_is_started(tmp_path, jobs, fake):
    adapter = fake(
        python="no-such-python",
        checkout=str(tmp_path / "elsewhere"),
        repository="https://example.org/x",
        weights=[{"path": "w.pth", "source": "a release", "licence": "MIT"}],
    )
    assert [line.partition(":")[0] for line in adapter.missing()] == ["checkout", "environment", "weights"]
    assert "git clone https://example.org/x" in adapter.missing()[0] and "baseline.python=" in adapter.missing()[1]
    assert "w.pth from a release (MIT)" in adapter.missing()[2]
    with pytest.raises(AdapterError, match=r"Fake cannot be started here:\n  checkout"):
        run_command(adapter, jobs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"command": "x {inptu} {input}"}, r"unknown fields \['inptu'\]"),
        ({"command": "x"}, r"neither command nor files have \{input\}"),
        ({"output": "all.png"}, r"has to hold \{stem\}"),
        ({"sizes": "x2"}, "sizes is 'x2'; choose any, x4, face"),
        ({"colour": "red"}, r"unknown keys or no title: \['colour'\]"),
    ],
)
def test_an_adapter_that_says_something_impossible_is_refused(fake, change, sentence):
    with pytest.raises(AdapterError, match=sentence):
        fake(**change)


def test_stems_are_safe_and_unique_without_case():
    assert stems(["a.b", "A b", "a_b", "ü"]) == {
        "a.b": "a_b",
        "A b": "A_b_n00001",
        "a_b": "a_b_n00002",
        "ü": "picture",
    }


# --- made elsewhere -----------------------------------------------------------------------------------------


def test_predictions_from_elsewhere_are_paired_checked_and_copied(tmp_path, jobs, fake):
    folder = tmp_path / "theirs"
    for job in jobs[:2]:
        write_png(folder / f"{job.path.stem}_0.png", read_tensor(job.path))
    write_png(folder / "c.png", torch.zeros(3, 37, 50))
    outcome = import_folder(folder, jobs, tmp_path / "out", adapter=fake(), said="by hand")
    assert outcome.made == 2 and list(outcome.missing) == ["c"] and "one colour" in outcome.missing["c"]
    assert record(tmp_path / "out")["said"] == "by hand" and record(tmp_path / "out")["launches"] == []
    write_png(folder / "c.png", read_tensor(jobs[2].path))
    assert import_folder(folder, jobs, tmp_path / "out", adapter=fake(), said="by hand").complete
    write_png(folder / "deeper/c_0.png", read_tensor(jobs[2].path))
    write_png(folder / "other/c_0.png", read_tensor(jobs[2].path))
    with pytest.raises(StagingError, match=r"holds 2 pictures called c_0\.png"):
        import_folder(folder, jobs, tmp_path / "twice", adapter=fake())
    wrong = tmp_path / "wrong"
    write_png(wrong / "c.png", torch.rand(3, 20, 20))
    outcome = import_folder(wrong, jobs, tmp_path / "small")
    assert outcome.made == 0 and "c.png is 20 x 20 and should be 50 x 37" in outcome.missing["c"]


# --- in this process ----------------------------------------------------------------------------------------


def test_bicubic_and_a_broken_file_in_this_process(tmp_path, jobs):
    bad = tmp_path / "lq/bad.png"
    bad.write_bytes(b"no picture")
    inputs = {job.path.stem: job.path for job in jobs} | {"bad": bad}
    adapter = Adapter(title="Bicubic", kind="method", method=Bicubic())

    def predict():
        failed, seconds = predict_folder(adapter.method, inputs, tmp_path / "out")
        return len(inputs) - len(failed), 0, failed, seconds

    outcome = run_here(adapter, tmp_path / "out", predict, scale=1)
    assert list(outcome.missing) == ["bad"] and record(tmp_path / "out")["complete"] is False
    assert torch.equal(read_tensor(tmp_path / "out/images/c.png"), read_tensor(jobs[2].path))
    assert Bicubic()(torch.rand(3, 5, 6), 4).shape == (3, 20, 24)


def test_real_esrgan_in_tiles_is_real_esrgan_whole(weights):
    weights("real_esrgan_x4plus")
    method = RealESRGANx4(tile=24, overlap=8, device="cpu")
    method.network.body = torch.nn.Sequential(*method.network.body[:1])  # one of 23 blocks: the seams are the same
    torch.manual_seed(0)
    image = resize(torch.rand(3, 8, 10), (30, 40))
    tiled = method(image, 4)
    whole = RealESRGANx4(device="cpu")
    whole.network = method.network
    difference = (tiled - whole(image, 4)).abs()
    assert tiled.shape == (3, 120, 160) and difference.mean() < 5e-3 and difference.max() < 0.1, difference.max()
    assert method(image, 1).shape == (3, 30, 40)
    with pytest.raises(ValueError, match="enlarges by 4 or"):
        method(image, 2)


@pytest.mark.slow
def test_real_esrgan_with_all_its_weights_sharpens_a_photo(weights, photo, tmp_path):
    weights("real_esrgan_x4plus")
    truth = torch.from_numpy(photo.copy()).permute(2, 0, 1)[:, 64:256, 160:352]
    small = resize(truth, (48, 48))
    made = RealESRGANx4(device="cpu")(small, 4)
    enlarged = Bicubic()(small, 4)
    detail = [(p[..., 1:] - p[..., :-1]).abs().mean() for p in (truth, made, enlarged)]
    assert detail[1] > 1.1 * detail[2], detail
    assert (made - truth).square().mean() < 0.02


# --- every system the paper names ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_every_system_has_an_adapter_that_can_be_shown(name, jobs):
    described = OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml"))
    adapter = Adapter.from_dict(described | {"method": instantiate(described.get("method"))})
    assert adapter.licence != "unknown" and adapter.tried
    if adapter.kind != "command":
        return
    assert {"python", "checkout", "command"} <= described.keys(), "an option can only be set if it is written there"
    assert adapter.repository.startswith("https://github.com/") and adapter.environment and adapter.missing()
    assert all(need.source and need.licence != "unknown" for need in adapter.weights)
    faces = [Job(Path("x/face.png"))]
    try:
        lines = commands(adapter, lay_out(adapter, jobs if adapter.sizes != "face" else [], 1), scale=1, seed=3)
    except StagingError:
        lines = []
    words = " ".join(adapter.words(input="IN", output="OUT", references="REF", scratch="S", scale=4, seed=3))
    assert "IN" in words or (adapter.files and "{" not in words and faces)
    assert adapter.sizes == "face" or f"cd {adapter.place}" in lines[0]
    if adapter.seedable:
        assert "seed" in words and " 3" in words, "the seed is not handed over"


def test_the_papers_systems_all_have_a_row():
    titles = set()
    for name in BASELINES:
        titles.add(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml").title)
    paper = "SUPIR, DiffBIR, ResShift, PASD, OSEDiff, SinSR, InvSR, S3Diff, S3Diff retrained, Face2Scene, FaceMe"
    paper += ", CodeFormer, OSDFace, RestoreFormer++, RedegNet"
    beyond = "Real-ESRGAN, Bicubic, PiSA-SR, HYPIR, InstantRestore"
    assert titles == {*paper.split(", "), *beyond.split(", ")}


def test_s3diffs_settings_file_is_filled_in(tmp_path):
    described = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs/baseline/s3diff_official.yaml"))
    text = Adapter.from_dict(described).texts(input="/in", scale=1, output="o", scratch="s", references="r", seed=0)
    assert OmegaConf.create(text["test.yaml"]) == {
        "sf": 1,
        "validation": {"lr_path": "/in", "io_backend": {"type": "disk"}},
    }


def test_the_script_lists_dry_runs_imports_and_scores(tmp_path, jobs, capsys):
    import importlib.util

    found = importlib.util.spec_from_file_location("script_run_baseline", REPOSITORY / "scripts/run_baseline.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    lines = script.listing().splitlines()
    assert len(lines) >= len(BASELINES) and any(line.startswith("supir ") and "missing" in line for line in lines)

    def run(*overrides: str) -> bool:
        options = [f"paths.runs={tmp_path}/runs", f"input={tmp_path}/lq", f"truth={tmp_path}/truth", "metrics=[psnr]"]
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            return script.run(compose("run_baseline", [*options, *overrides]), "x")

    assert run("baseline=sinsr", "dry_run=true", "baseline.python=no-such-python")
    assert "environment: no-such-python" in capsys.readouterr().out
    assert run("baseline=sinsr", "dry_run=true")
    out = capsys.readouterr().out
    assert "missing  weights" in out and "--one_step" in out and "# 3 pictures" in out and "note     After" in out
    assert not (tmp_path / "runs").exists()
    assert run("baseline=bicubic")
    assert "3 pictures made" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/baseline/x/scores.json").read_text())["complete"]
    with pytest.raises(AdapterError, match="SUPIR cannot be started here"):
        run("baseline=supir")
    Image.open(jobs[0].path).save(tmp_path / "lone.png")
    (tmp_path / "some").mkdir()
    (tmp_path / "lone.png").rename(tmp_path / "some/a b.1.png")
    assert not run(f"import_only={tmp_path}/some", "name=imported")
    assert json.loads((tmp_path / "runs/imported/scores.json").read_text())["complete"] is False
