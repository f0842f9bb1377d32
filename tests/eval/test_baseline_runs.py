"""Other methods: staged, started as a process, their images checked, the run recorded."""

import re
import signal
import subprocess
from threading import Thread
from time import sleep

import numpy as np
import pytest
import torch
from baseline_inputs import FAKE_METHOD, read_record

from face2scene.eval.baselines.run import import_folder, run_command
from face2scene.eval.scoring.score import score_folder
from face2scene.image_io.arrays import read_tensor, write_png
from face2scene.inference.tasks import RestorationTask, find_tasks


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
    with pytest.raises(ValueError, match=r"1 names occur more than once in the input, such as x.*gt=null"):
        run_baseline_script(*nested, f"gt={tmp_path}/nested")
