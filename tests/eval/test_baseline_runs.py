"""Other methods: staged, started as a process, their images checked, the run recorded."""

import argparse
import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from time import sleep

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from face2scene.common.files import sha256_of
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.baselines.adapter import Adapter, AdapterError, stems
from face2scene.eval.baselines.methods import Bicubic, RealESRGANx4, predict_folder
from face2scene.eval.baselines.record import compat_warnings
from face2scene.eval.baselines.run import commands, import_folder, run_command, run_in_process
from face2scene.eval.baselines.staging import StagingError, collect_output, lay_out, scale_of
from face2scene.eval.scoring.score import score_folder
from face2scene.image_io.arrays import read_tensor, resize, write_png
from face2scene.inference.tasks import RestorationTask, find_tasks
from face2scene.models.fadex.encoder import FaDeX

BASELINES = sorted(path.stem for path in (REPOSITORY / "configs/baseline").glob("*.yaml"))
# A program like the others: reads every file of a folder, enlarges, writes under names of its own, keeps a journal.
FAKE_METHOD = """
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
    if how == "slow":
        import time
        time.sleep(0.2 if number < 1 else 60)
if how == "scorer":
    import no_such_scorer
"""


@pytest.fixture
def tasks(tmp_path) -> list[RestorationTask]:
    """Three scenes of different sizes, with their ground truth."""
    rng = np.random.default_rng(0)
    made = []
    for name, size in (("a b.1", (48, 64)), ("a.b 1", (44, 40)), ("c", (37, 50))):
        gt = tmp_path / "truth" / f"{name}.png"
        write_png(gt, rng.random((*size, 3), dtype=np.float32))
        path = tmp_path / "lq" / f"{name}.png"
        write_png(path, rng.random((*size, 3), dtype=np.float32))
        made.append(RestorationTask(path, gt=gt))
    return made


@pytest.fixture
def make_adapter(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "tools").mkdir(parents=True)
    (checkout / "tools/test.py").write_text(FAKE_METHOD)
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


@pytest.fixture(scope="module")
def baseline_script():
    found = importlib.util.spec_from_file_location("script_run_baseline", REPOSITORY / "scripts/run_baseline.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def run_baseline_script(tmp_path, baseline_script):
    """scripts/run_baseline.py on options, its runs in the test's folder."""

    def run(*overrides: str) -> bool:
        options = [f"paths.runs={tmp_path}/runs", "metrics=[psnr]", *overrides]
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            return baseline_script.run(compose("run_baseline", options), "x")

    return run


def read_record(folder: Path) -> dict:
    return json.loads((folder / "baseline.json").read_text())


def test_run_restores_inputs_and_records_launch(tmp_path, tasks, make_adapter):
    out = tmp_path / "out"
    outcome = run_command(make_adapter(), tasks, out, seed=7, gpu="1")
    assert (
        outcome.complete
        and outcome.made == 3
        and sorted(p.stem for p in (out / "images").iterdir()) == sorted(task.path.stem for task in tasks)
    )
    for task in tasks:  # the program does nothing at scale 1, so each image must come back as it was
        assert torch.equal(read_tensor(out / "images" / task.path.name), read_tensor(task.path))
    kept = read_record(out)
    (launch,) = kept["launches"]
    assert launch["command"][1:] == ["test.py", "SCRATCH/input", "SCRATCH/output", "1", "7", "good"]
    assert launch["exit_code"] == 0 and launch["seconds"] > 0 and launch["peak_memory_mib"] > 5
    assert launch["seconds_per_picture"] == pytest.approx(launch["seconds"] / 3, abs=0.01)
    assert 0 <= launch["seconds_between_pictures"] < launch["seconds"] and "gpu_model" in launch
    assert kept["seed"] == 7 and kept["size_mode"] == "same size" and kept["complete"] is True
    assert launch["interpreter"]["python"].startswith("3.") and kept["checkout"]["commit"] == "unknown"
    assert list(kept["weights_sha256"]) == ["weights.bin"] and len(kept["weights_sha256"]["weights.bin"]) == 64
    assert "loading weights 1 1" in (out / "log.txt").read_text()

    scores = score_folder(out, {task.path.stem: task.gt for task in tasks}, ["psnr"])
    assert scores["complete"] and scores["counts"]["scored"] == 3
    again = run_command(make_adapter(), tasks, out, seed=7, gpu="1")
    assert again.finished_before == 3 and again.made == 0 and len(read_record(out)["launches"]) == 1
    with pytest.raises(ValueError, match=r"made otherwise \(different: seed\)"):
        run_command(make_adapter(), tasks, out, seed=8)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (127, 127, 127), (200, 30, 90), (201, 30, 90)])
def test_uniform_output_is_rejected(tmp_path, make_adapter, colour):
    write_png(tmp_path / "in.png", torch.rand(3, 16, 24))
    adapter = make_adapter()
    (row,) = lay_out(adapter, [RestorationTask(tmp_path / "in.png")], 1)
    made = Image.new("RGB", (24, 16), colour)
    made.putpixel((3, 4), tuple(max(0, value - 1) for value in colour))  # a rounding apart
    made.save(tmp_path / "made.png")
    image, reason = collect_output(adapter, row, tmp_path / "made.png")
    assert image is None and "which is how NaN looks" in reason
    made.putpixel((3, 4), (colour[0], (colour[1] + 100) % 256, colour[2]))
    made.save(tmp_path / "made.png")
    assert collect_output(adapter, row, tmp_path / "made.png")[1] == ""


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
def test_bad_output_makes_run_incomplete(tmp_path, tasks, make_adapter, how, made, reason):
    out = tmp_path / "out"
    outcome = run_command(make_adapter(how), tasks, out)
    assert not outcome.complete and outcome.made == made and "INCOMPLETE" in str(outcome)
    assert any(re.search(reason, sentence) for sentence in outcome.missing.values()), outcome.missing
    assert read_record(out)["complete"] is False and read_record(out)["missing"] == outcome.missing
    scores = score_folder(out, {task.path.stem: task.gt for task in tasks}, ["psnr"])
    assert scores["complete"] is False and scores["means"] == {}, "a mean over fewer images is no mean"


def test_exit_code_counts_only_if_trusted(tmp_path, tasks, make_adapter):
    outcome = run_command(make_adapter("scorer"), tasks, tmp_path / "out")
    assert outcome.complete and read_record(tmp_path / "out")["launches"][0]["exit_code"] == 1
    outcome = run_command(make_adapter("scorer", trust_exit=True), tasks, tmp_path / "trusted")
    assert len(outcome.missing) == 3 and "no_such_scorer" in next(iter(outcome.missing.values()))


def test_interrupt_keeps_finished_images(tmp_path, tasks, make_adapter):
    def interrupt():
        first = tmp_path / "scratch"
        while not [path for path in first.glob("*/output/*.png") if path.stat().st_size]:
            sleep(0.02)
        sleep(0.3)  # beyond its pause: it has begun with the second
        signal.raise_signal(signal.SIGINT)

    (tmp_path / "scratch").mkdir()
    Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist's workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_command(make_adapter("slow"), tasks, tmp_path / "out", scratch=tmp_path / "scratch")
    finally:
        signal.signal(signal.SIGINT, before)
    made = [path.stem for path in (tmp_path / "out/images").glob("*.png")]
    kept = read_record(tmp_path / "out")
    assert len(made) in (1, 2) and len(kept["missing"]) == 3 - len(made) and kept["complete"] is False
    assert kept["launches"][0]["pictures"] == len(made) and kept["launches"][0]["seconds"] > 0.2
    assert "it was stopped before its end" in next(iter(kept["missing"].values()))
    assert not list((tmp_path / "scratch").iterdir())


def test_rerun_restores_only_missing(tmp_path, tasks, make_adapter):
    out = tmp_path / "out"
    run_command(make_adapter("omit"), tasks, out)
    (tmp_path / "checkout/tools/test.py").write_text(FAKE_METHOD.replace('how == "omit"', 'how == "mended"'))
    outcome = run_command(make_adapter("omit"), tasks, out)
    assert outcome.complete and (outcome.made, outcome.finished_before) == (1, 2)
    assert [launch["pictures"] for launch in read_record(out)["launches"]] == [2, 1]


def test_changed_input_is_rerun(tmp_path, tasks, make_adapter):
    out = tmp_path / "out"
    run_command(make_adapter(), tasks, out)
    other = 1 - read_tensor(tasks[0].path)
    write_png(tasks[0].path, other)
    outcome = run_command(make_adapter(), tasks, out)
    assert (outcome.made, outcome.finished_before) == (1, 2)
    assert torch.equal(read_tensor(out / "images" / tasks[0].path.name), read_tensor(tasks[0].path))


def test_changed_references_are_rerun(tmp_path, tasks, make_adapter):
    photo = tmp_path / "photo.png"
    write_png(photo, torch.rand(3, 20, 20))
    known = [RestorationTask(task.path, people={"ann": (photo,)}) for task in tasks[:2]]
    adapter = make_adapter(
        per_identity=True, command="{python} test.py {input} {output} {scale} {seed} {how} {references}"
    )
    assert run_command(adapter, known, tmp_path / "out").made == 2
    assert run_command(adapter, known, tmp_path / "out").finished_before == 2
    write_png(photo, torch.rand(3, 20, 20))
    assert run_command(adapter, known, tmp_path / "out").made == 2


def test_changed_weights_are_refused(tmp_path, tasks, make_adapter):
    base = tmp_path / "checkout/base"
    (base / "unet").mkdir(parents=True)
    (base / "unet/w.bin").write_bytes(b"one")
    weights = [{"path": name, "source": "nowhere", "licence": "none"} for name in ("weights.bin", "base")]
    adapter = make_adapter(weights=weights)
    run_command(adapter, tasks, tmp_path / "out")
    (base / ".cache").mkdir()
    (base / ".cache/download").write_text("a date")
    assert run_command(adapter, tasks, tmp_path / "out").finished_before == 3
    (base / "unet/w.bin").write_bytes(b"two")
    with pytest.raises(ValueError, match=r"\(different: weights_sha256\.base\)\. Choose another name="):
        run_command(adapter, tasks, tmp_path / "out")
    (base / "unet/w.bin").write_bytes(b"one")
    (tmp_path / "checkout/weights.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"weights_sha256\.weights\.bin"):
        run_command(adapter, tasks, tmp_path / "out")
    licensed = make_adapter(weights=[need | {"licence": "MIT"} for need in weights], notes=["new"], licence="MIT")
    (tmp_path / "checkout/weights.bin").write_bytes(b"weights")
    assert run_command(licensed, tasks, tmp_path / "out").finished_before == 3, "words decide no image"


def test_changed_checkout_is_refused(tmp_path, tasks, make_adapter):
    place = tmp_path / "checkout"
    git = ["git", "-C", str(place), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "tools"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    run_command(make_adapter(), tasks, tmp_path / "out")
    assert len(read_record(tmp_path / "out")["checkout"]["commit"]) == 40
    (place / "tools/test.py").write_text(FAKE_METHOD + "# edited")
    with pytest.raises(ValueError, match=r"checkout\.changed_files, checkout\.changes_sha256"):
        run_command(make_adapter(), tasks, tmp_path / "out")
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    with pytest.raises(ValueError, match=r"checkout\.commit"):
        run_command(make_adapter(), tasks, tmp_path / "out")


def test_empty_run_accepts_new_options(tmp_path, tasks, make_adapter):
    run_command(make_adapter("crash"), tasks[:1], tmp_path / "out")  # the first image is made
    with pytest.raises(ValueError, match=r"adapter\.options"):
        run_command(make_adapter(), tasks[:1], tmp_path / "out")
    assert run_command(make_adapter(output="elsewhere/{stem}.png"), tasks, tmp_path / "none").made == 0
    assert run_command(make_adapter(), tasks, tmp_path / "none").complete


def test_unrecorded_images_are_refused(tmp_path, tasks, make_adapter):
    mine = tmp_path / "out/images/c.png"
    write_png(mine, torch.rand(3, 37, 50))
    before = mine.read_bytes()
    with pytest.raises(ValueError, match=r"holds 1 images whose input is not in baseline\.json, such as c\."):
        run_command(make_adapter(), tasks, tmp_path / "out")
    assert mine.read_bytes() == before


def test_same_name_in_two_folders(tmp_path, make_adapter, run_baseline_script):
    rng = np.random.default_rng(2)
    for place in ("p/x", "q/x"):
        write_png(tmp_path / f"nested/{place}.png", rng.random((24, 32, 3), dtype=np.float32))
    tasks = find_tasks(tmp_path / "nested")
    outcome = run_command(make_adapter(), tasks, tmp_path / "out")
    assert outcome.complete and outcome.made == 2
    for task in tasks:
        assert torch.equal(read_tensor(tmp_path / f"out/images/{task.name}.png"), read_tensor(task.path))
    again = import_folder(tmp_path / "out/images", tasks, tmp_path / "again")
    assert again.made == 2
    assert torch.equal(read_tensor(tmp_path / "again/images/q/x.png"), read_tensor(tasks[1].path))
    # one file of that name, in neither place, is nobody's
    write_png(tmp_path / "flat/x.png", read_tensor(tasks[0].path))
    assert list(import_folder(tmp_path / "flat", tasks, tmp_path / "none").missing) == ["p/x", "q/x"]

    nested = [f"input={tmp_path}/nested", "baseline=bicubic"]
    assert run_baseline_script(*nested, "gt=null", "name=bicubic")
    for task in tasks:
        assert torch.equal(read_tensor(tmp_path / f"runs/bicubic/images/{task.name}.png"), read_tensor(task.path))
    with pytest.raises(ValueError, match=r"1 names occur more than once in input=.*such as x.*gt=null"):
        run_baseline_script(*nested, f"gt={tmp_path}/nested")


def test_x4_method_gets_quarter_size_input(tmp_path, tasks, make_adapter):
    out = tmp_path / "out"
    assert run_command(make_adapter(sizes="x4"), tasks, out).complete
    for task in tasks:
        made, given = read_tensor(out / "images" / task.path.name), read_tensor(task.path)
        assert made.shape == given.shape
        assert made.std() < 0.7 * given.std(), "noise that went through a quarter of the size is not the input"
    assert (
        read_record(out)["shrunk_by"].startswith("antialiased bicubic")
        and read_record(out)["launches"][0]["command"][-3] == "4"
    )
    rows = lay_out(make_adapter(sizes="x4"), tasks, 1)
    assert [row.size for row in rows] == [(12, 16), (11, 10), (10, 13)]
    assert rows[2].expected == (40, 52) and rows[2].target == (37, 50)


def test_x4_task_upscales_by_four(tmp_path, tasks, make_adapter):
    small = []
    for task in tasks:
        path = tmp_path / "small" / task.path.name
        write_png(path, resize(read_tensor(task.path)[..., :36, :40], (9, 10)))
        gt = tmp_path / "cut" / task.path.name
        write_png(gt, read_tensor(task.gt)[..., :36, :40])
        small.append(RestorationTask(path, gt=gt))
    assert scale_of(small, None, None) == 4 and scale_of(tasks, None, None) == 1
    with pytest.raises(StagingError, match="ground truth is 4 times as large as the input and scale is 1"):
        scale_of(small, None, 1)
    with pytest.raises(StagingError, match=r"times as large as the input and scale is None"):
        scale_of([small[0], tasks[0]], None, None)
    for sizes in ("any", "x4"):
        assert run_command(make_adapter(sizes=sizes), small, tmp_path / sizes, scale=4).complete
        assert read_tensor(tmp_path / sizes / "images/c.png").shape == (3, 36, 40)
        assert read_record(tmp_path / sizes)["shrunk_by"] is None


def test_sides_are_padded_to_multiple(tmp_path, tasks, make_adapter):
    assert [row.size for row in lay_out(make_adapter(multiple=8), tasks, 1)] == [(48, 64), (48, 40), (40, 56)]
    out = tmp_path / "out"
    outcome = run_command(make_adapter("rounded", multiple=8, other_sizes="resize"), tasks, out)
    assert outcome.complete and outcome.notes == {"a b.1": "resized from 56 x 40"} == read_record(out)["notes"]
    assert torch.equal(read_tensor(out / "images/c.png"), read_tensor(tasks[2].path))  # padded, cut, untouched


def test_face_method_groups_by_identity(tmp_path, tasks, make_adapter):
    with pytest.raises(StagingError, match=r"aligned faces.*a b\.1\.png is 64 x 48"):
        lay_out(make_adapter(sizes="face"), tasks, 1)
    rng = np.random.default_rng(1)
    people = {name: tmp_path / f"{name}.png" for name in ("ann", "bob")}
    for path in people.values():
        write_png(path, rng.random((20, 20, 3), dtype=np.float32))
    faces = []
    for number, person in enumerate(("ann", "bob", "ann")):
        path = tmp_path / f"faces/f{number}.png"
        write_png(path, rng.random((256, 256, 3), dtype=np.float32))
        faces.append(RestorationTask(path, people={person: (people[person],)}))
    adapter = make_adapter(
        sizes="face",
        per_identity=True,
        command="{python} test.py {input} {output} {scale} {seed} {how} {references}",
        references=2,
    )
    lines = commands(adapter, lay_out(adapter, faces, 1), scale=1, seed=0)
    assert len(lines) == 2 and lines[0].endswith("# 2 images") and "CUDA_VISIBLE_DEVICES=0" in lines[0]
    with pytest.raises(StagingError, match=r"needs references, and 1 of 4 images have none, such as f1: say ref"):
        run_command(adapter, [*faces, RestorationTask(faces[1].path)], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    outcome = run_command(adapter, faces, tmp_path / "out")
    assert outcome.complete and read_tensor(tmp_path / "out/images/f1.png").shape == (3, 256, 256)
    assert [launch["pictures"] for launch in read_record(tmp_path / "out")["launches"]] == [2, 1]
    with pytest.raises(StagingError, match="needs references"):
        run_command(make_adapter(sizes="face", per_identity=True), [RestorationTask(faces[0].path)], tmp_path / "none")


def test_instantrestore_identity_layout(tmp_path, make_adapter):
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
    adapter = make_adapter(
        sizes="face",
        layout="identity",
        references=4,
        output="{stem}.png",
        files={"driver.py": program},
        command="{python} {scratch}/driver.py {input} {output}",
    )
    outcome = run_command(adapter, [RestorationTask(face, people={"person": (person,)})], tmp_path / "out")
    assert outcome.complete, outcome.missing


def test_missing_parts_are_listed_before_launch(tmp_path, tasks, make_adapter):
    adapter = make_adapter(
        python="no-such-python",
        checkout=str(tmp_path / "elsewhere"),
        repository="https://example.org/x",
        weights=[{"path": "w.pth", "source": "a release", "licence": "MIT"}],
    )
    assert [line.partition(":")[0] for line in adapter.missing()] == ["checkout", "environment", "weights"]
    assert "git clone https://example.org/x" in adapter.missing()[0] and "baseline.python=" in adapter.missing()[1]
    assert "w.pth from a release (MIT)" in adapter.missing()[2]
    with pytest.raises(AdapterError, match=r"Fake cannot be started here:\n  checkout"):
        run_command(adapter, tasks, tmp_path / "out")
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
def test_invalid_adapter_is_refused(make_adapter, change, sentence):
    with pytest.raises(AdapterError, match=sentence):
        make_adapter(**change)


def test_stems_are_safe_and_unique():
    assert stems(["a.b", "A b", "a_b", "ü"]) == {
        "a.b": "a_b",
        "A b": "A_b_n00001",
        "a_b": "a_b_n00002",
        "ü": "image",
    }


# --- made elsewhere -----------------------------------------------------------------------------------------


def test_import_pairs_and_checks_predictions(tmp_path, tasks, make_adapter):
    folder = tmp_path / "theirs"
    for task in tasks[:2]:
        write_png(folder / f"{task.path.stem}_0.png", read_tensor(task.path))
    write_png(folder / "c.png", torch.zeros(3, 37, 50))
    outcome = import_folder(folder, tasks, tmp_path / "out", adapter=make_adapter(), said="by hand")
    assert (
        outcome.made == 2 and list(outcome.missing) == ["c"] and "c.png is one colour all over" in outcome.missing["c"]
    )
    assert read_record(tmp_path / "out")["said"] == "by hand" and read_record(tmp_path / "out")["launches"] == []
    write_png(folder / "c.png", read_tensor(tasks[2].path))
    assert import_folder(folder, tasks, tmp_path / "out", adapter=make_adapter(), said="by hand").complete
    write_png(folder / "deeper/c_0.png", read_tensor(tasks[2].path))
    write_png(folder / "other/c_0.png", read_tensor(tasks[2].path))
    with pytest.raises(StagingError, match=r"holds 2 images called c_0\.png"):
        import_folder(folder, tasks, tmp_path / "twice", adapter=make_adapter())
    wrong = tmp_path / "wrong"
    write_png(wrong / "c.png", torch.rand(3, 20, 20))
    outcome = import_folder(wrong, tasks, tmp_path / "small")
    assert outcome.made == 0 and "c.png is 20 x 20 and should be 50 x 37" in outcome.missing["c"]


def test_changed_folder_is_reimported(tmp_path, tasks):
    folder, out = tmp_path / "theirs", tmp_path / "out"
    for task in tasks:
        write_png(folder / f"{task.path.stem}.png", read_tensor(task.path))
    assert import_folder(folder, tasks, out).made == 3
    assert import_folder(folder, tasks, out).finished_before == 3
    write_png(folder / "c.png", 1 - read_tensor(tasks[2].path))
    (folder / "a b.1.png").unlink()
    outcome = import_folder(folder, tasks, out)
    assert (outcome.made, outcome.finished_before, list(outcome.missing)) == (1, 1, ["a b.1"])
    assert torch.equal(read_tensor(out / "images/c.png"), read_tensor(folder / "c.png"))
    assert not (out / "images/a b.1.png").exists(), "an image of the folder of before stayed among those of now"
    with pytest.raises(ValueError, match="different: said"):
        import_folder(folder, tasks, out, said="by others")


# --- in this process ----------------------------------------------------------------------------------------


def test_in_process_run_skips_unreadable_file(tmp_path, tasks):
    bad = tmp_path / "lq/bad.png"
    bad.write_bytes(b"no image")
    inputs = {task.path.stem: task.path for task in [*tasks, RestorationTask(bad)]}
    adapter = Adapter(title="Bicubic", kind="method", method=Bicubic())

    def predict():
        failed, seconds = predict_folder(adapter.method, inputs, tmp_path / "out")
        return len(inputs) - len(failed), 0, failed, seconds

    outcome = run_in_process(
        adapter, [*tasks, RestorationTask(bad)], tmp_path / "out", predict, weights={"w": bad}, scale=1
    )
    assert read_record(tmp_path / "out")["weights_sha256"] == {"w": sha256_of(bad)}
    assert list(outcome.missing) == ["bad"] and read_record(tmp_path / "out")["complete"] is False
    assert torch.equal(read_tensor(tmp_path / "out/images/c.png"), read_tensor(tasks[2].path))
    assert Bicubic()(torch.rand(3, 5, 6), 4).shape == (3, 20, 24)


def test_in_process_run_checks_weights_options(tmp_path, tasks, run_baseline_script):
    lq = f"input={tmp_path}/lq"
    assert run_baseline_script("baseline=bicubic", lq)
    write_png(tasks[0].path, 1 - read_tensor(tasks[0].path))
    assert run_baseline_script("baseline=bicubic", lq)
    assert torch.equal(read_tensor(tmp_path / "runs/baseline/x/images/a b.1.png"), read_tensor(tasks[0].path))

    ours = ["baseline=face2scene", "name=ours", "limit=1", "faces=none", "ref_fr=none", lq]
    ours += [f"restorer_weights={REPOSITORY}/checkpoints/tiny/restorer.safetensors"]
    assert run_baseline_script(*ours)
    kept = read_record(tmp_path / "runs/ours")
    assert list(kept["weights_sha256"]) == ["restorer_weights", "fadex_weights"]
    (launch,) = kept["launches"]
    assert launch["device"] and launch["peak_memory_mib"] > 50 and launch["seconds_per_picture"] > 0
    assert kept["ref_fr"] is None and kept["guidance"] is None and kept["options"]["colour"] == "wavelet"
    with pytest.raises(ValueError, match=r"different: guidance"):
        run_baseline_script(*ours, "guidance=1.5")
    weights = tmp_path / "fadex.safetensors"
    weights.write_bytes((REPOSITORY / "checkpoints/tiny/fadex.safetensors").read_bytes())
    assert run_baseline_script(*ours, f"fadex_weights={weights}"), "the same bytes elsewhere"
    network = FaDeX.from_file(weights)
    with torch.no_grad():
        next(network.parameters()).mul_(1.01)
    network.save(weights)
    with pytest.raises(ValueError, match=r"different: weights_sha256\.fadex_weights"):
        run_baseline_script(*ours, f"fadex_weights={weights}")


def test_record_holds_method_weights_hash(tmp_path, weights, baseline_script, run_baseline_script):
    weights("real_esrgan_x4plus")
    write_png(tmp_path / "tiny/x.png", torch.rand(3, 8, 8))
    assert run_baseline_script("baseline=real_esrgan", f"input={tmp_path}/tiny")
    kept = read_record(tmp_path / "runs/baseline/x")
    assert len(kept["weights_sha256"]["asset:real_esrgan_x4plus"]) == 64
    assert kept["method_options"]["tile"] == 192
    with pytest.raises(ValueError, match=r"different: method_options\.tile"):
        run_baseline_script("baseline=real_esrgan", "baseline.method.tile=64", f"input={tmp_path}/tiny")


def test_real_esrgan_tiled_matches_whole(weights):
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
def test_real_esrgan_sharpens_photo(weights, photo, tmp_path):
    weights("real_esrgan_x4plus")
    gt = torch.from_numpy(photo.copy()).permute(2, 0, 1)[:, 64:256, 160:352]
    small = resize(gt, (48, 48))
    made = RealESRGANx4(device="cpu")(small, 4)
    enlarged = Bicubic()(small, 4)
    detail = [(p[..., 1:] - p[..., :-1]).abs().mean() for p in (gt, made, enlarged)]
    assert detail[1] > 1.1 * detail[2], detail
    assert (made - gt).square().mean() < 0.02


# --- every system the paper names ---------------------------------------------------------------------------


def load_adapter(name: str, **changes) -> Adapter:
    described = OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml"))
    return Adapter.from_dict(described | {"method": instantiate(described.get("method"))} | changes)


@pytest.mark.parametrize("name", BASELINES)
def test_adapter_config_is_complete(name, tmp_path):
    adapter = load_adapter(name)
    assert adapter.licence != "unknown" and adapter.tried
    assert all(need.source and need.licence != "unknown" for need in adapter.weights)
    assert all(need.sha256 is None or re.fullmatch("[0-9a-f]{64}", need.sha256) for need in adapter.weights)
    if adapter.kind != "command":
        return
    described = OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml")
    assert {"python", "checkout", "commit", "command"} <= described.keys(), "what is not there cannot be overridden"
    assert adapter.repository.startswith("https://github.com/") and adapter.environment
    (line,) = commands(adapter, [], scale=4, seed=3)
    assert f"cd {adapter.place} && " in line and line.endswith("# 0 images")
    given = {"input": "IN", "output": "OUT", "references": "REF", "scratch": "S", "scale": 4, "seed": 3}
    words = adapter.words(**given)
    texts = adapter.texts(**given)
    assert "IN" in words or any("IN" in text for text in texts.values())
    assert not any("{" in word for word in words)
    assert ("3" in words) == ("{seed}" in adapter.command) and (not adapter.seedable or "3" in words)
    # not installed: everything is named, the commit too
    nowhere = load_adapter(name, checkout=str(tmp_path / "nowhere"), python=str(tmp_path / "python"))
    checkout, environment, *weights = nowhere.missing()
    assert f"git clone {adapter.repository} {tmp_path}/nowhere" in checkout and "environment: " in environment
    assert len(weights) >= len([need for need in adapter.weights if not need.path.startswith(("hub:", "~", "{clip"))])
    unpinned = {"resshift", "invsr", "hypir", "pisa_sr"}  # their files say why
    assert (adapter.commit is None) == (name in unpinned)
    if adapter.commit:
        assert re.fullmatch("[0-9a-f]{40}", adapter.commit) and f"nowhere checkout {adapter.commit}" in checkout


def test_pasd_captioner_is_off():
    parser = argparse.ArgumentParser()
    choices = ["classification", "detection", "caption"]
    parser.add_argument("--high_level_info", choices=choices, nargs="?", default="caption")
    words = load_adapter("pasd").words(input="IN", output="OUT", references="R", scratch="S", scale=4, seed=3)
    assert parser.parse_known_args(words[2:])[0].high_level_info is None


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("osediff", ["google-bert/bert-base-uncased"]),
        ("instantrestore", ["stabilityai/sd-turbo", "stabilityai/sd-vae-ft-mse"]),
        ("supir", ["openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"]),
        ("faceme", ["TencentARC/PhotoMaker"]),
    ],
)
def test_missing_hub_models_are_listed(name, needs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lines = [line for line in load_adapter(name).missing() if str(tmp_path) in line]
    for need in needs:
        place = tmp_path / f"models--{need.replace('/', '--')}"
        assert any(str(place) in line and f"hub {need}" in line for line in lines), lines
        (place / "snapshots/abc").mkdir(parents=True)
        assert any(str(place) in line for line in load_adapter(name).missing()), (
            "a snapshot that is not main is not used"
        )
        (place / "refs").mkdir()
        (place / "refs/main").write_text("abc")
    left = [line for line in load_adapter(name).missing() if str(tmp_path) in line]
    assert left == [line for line in lines if "buffalo_l" in line]
    assert len(left) == (name == "instantrestore")
    assert {path.name for key, path in load_adapter(name).found().items()} >= {"abc"}


def test_unexpected_commit_or_weights_warn(tmp_path, tasks, make_adapter, caplog, baseline_script, capsys):
    place = tmp_path / "checkout"
    git = ["git", "-C", str(place), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "tools"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    need = {"path": "weights.bin", "source": "a release", "licence": "none"}
    good = make_adapter(commit=head, weights=[need | {"sha256": sha256_of(place / "weights.bin")}])
    assert run_command(good, tasks, tmp_path / "good").complete and not caplog.text
    bad = make_adapter(commit="a" * 40, weights=[need | {"sha256": "b" * 64}])
    assert run_command(bad, tasks, tmp_path / "bad").complete
    assert f"is at {head}, and the options were read at {'a' * 40}" in caplog.text and "checkout a" in caplog.text
    assert "weights.bin is another file than a release" in caplog.text
    assert make_adapter(commit="a" * 40, checkout=str(tmp_path / "none")).missing()
    assert not compat_warnings(make_adapter(commit="a" * 40, checkout=str(tmp_path / "none"), folder=".")), (
        "it is missing, not another"
    )
    baseline_script.show(bad, [], 1, 0, tmp_path)
    assert capsys.readouterr().out.count("  warning  ") == 2


def test_all_paper_methods_have_config():
    titles = set()
    for name in BASELINES:
        titles.add(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml").title)
    paper = "SUPIR, DiffBIR, ResShift, PASD, OSEDiff, SinSR, InvSR, S3Diff, S3Diff retrained, Face2Scene, FaceMe"
    paper += ", CodeFormer, OSDFace, RestoreFormer++, RedegNet"
    beyond = "Real-ESRGAN, Bicubic, PiSA-SR, HYPIR, InstantRestore"
    assert titles == {*paper.split(", "), *beyond.split(", ")}


def test_s3diff_settings_file_is_filled(tmp_path):
    described = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs/baseline/s3diff_official.yaml"))
    text = Adapter.from_dict(described).texts(input="/in", scale=1, output="o", scratch="s", references="r", seed=0)
    assert OmegaConf.create(text["test.yaml"]) == {
        "sf": 1,
        "validation": {"lr_path": "/in", "io_backend": {"type": "disk"}},
    }


def test_script_flags_become_overrides(baseline_script):
    for words in (["x", "--import-only", "F", "a=1", "--dry-run"], ["x", "--import-only=F", "a=1", "--dry-run"]):
        assert baseline_script.with_overrides(words) == ["x", "import_only=F", "a=1", "dry_run=true"]
    for words in (["x", "--import-only"], ["x", "--import-only="], ["x", "--import-only", "--dry-run"]):
        with pytest.raises(SystemExit, match="takes the folder"):
            baseline_script.with_overrides(words)


def test_script_list_dry_run_import_score(tmp_path, tasks, capsys, baseline_script, run_baseline_script):
    lines = baseline_script.listing().splitlines()
    assert len(lines) >= len(BASELINES) and any(line.startswith("supir ") and "missing" in line for line in lines)

    def run(*overrides: str) -> bool:
        return run_baseline_script(f"input={tmp_path}/lq", f"gt={tmp_path}/truth", *overrides)

    assert run("baseline=sinsr", "dry_run=true", "baseline.python=no-such-python")
    assert "environment: no-such-python" in capsys.readouterr().out
    assert run("baseline=sinsr", "dry_run=true")
    out = capsys.readouterr().out
    assert "missing  weights" in out and "--one_step" in out and "# 3 images" in out and "note     After" in out
    write_png(tmp_path / "lone/face.png", torch.rand(3, 64, 64))
    assert run_baseline_script("baseline=faceme", "dry_run=true", f"input={tmp_path}/lone")
    out = capsys.readouterr().out
    assert "missing  input: FaceMe needs references" in out and "does not fix its result" in out
    assert "infer.py" in out, "what is missing of the input hides neither the command nor what else is missing"
    assert not (tmp_path / "runs").exists()
    assert run("baseline=bicubic")
    assert "3 images made" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/baseline/x/scores.json").read_text())["complete"]
    with pytest.raises(AdapterError, match="SUPIR cannot be started here"):
        run("baseline=supir")
    write_png(tmp_path / "some/a b.1.png", read_tensor(tasks[0].path))
    assert not run(f"import_only={tmp_path}/some", "name=imported")
    assert json.loads((tmp_path / "runs/imported/scores.json").read_text())["complete"] is False
