"""Baseline staging."""

import numpy as np
import pytest
import torch
from baseline_inputs import read_record
from PIL import Image

from face2scene.eval.baselines.adapter import stems
from face2scene.eval.baselines.run import commands, import_folder, run_command
from face2scene.eval.baselines.staging import StagingError, collect_output, lay_out, scale_of
from face2scene.image_io.arrays import read_tensor, resize, to_bytes, write_png
from face2scene.image_io.deep import encode_png
from face2scene.inference.tasks import RestorationTask


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


def test_stems_are_safe_and_unique():
    assert stems(["a.b", "A b", "a_b", "ü"]) == {
        "a.b": "a_b",
        "A b": "A_b_n00001",
        "a_b": "a_b_n00002",
        "ü": "image",
    }


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


def test_import_names_what_cannot_be_compared(tmp_path, tasks, caplog):
    folder = tmp_path / "theirs"
    grey, deep, good = (folder / f"{task.path.stem}.png" for task in tasks)
    write_png(good, read_tensor(tasks[2].path))
    write_png(folder / "another.png", torch.rand(3, 20, 20))
    Image.fromarray(to_bytes(read_tensor(tasks[0].path))).convert("L").save(grey)
    deep.write_bytes(encode_png(to_bytes(read_tensor(tasks[1].path)).astype(np.uint16) * 257))
    outcome = import_folder(folder, tasks, tmp_path / "out")
    assert outcome.made == 1 and not outcome.complete
    assert outcome.missing["a b.1"] == "a b.1.png is L and should be RGB of 8 bit"
    assert outcome.missing["a.b 1"] == "a.b 1.png is RGB of 16 bit and should be RGB of 8 bit"
    assert "1 images of no input are left out: another.png" in caplog.text


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


def test_same_size_method_gets_enlarged_quarter(tmp_path, make_adapter):
    write_png(tmp_path / "lq/a.png", torch.rand(3, 9, 13))
    task = RestorationTask(tmp_path / "lq/a.png")
    adapter = make_adapter(sizes="same", multiple=8)
    (row,) = lay_out(adapter, [task], 4)
    assert (row.size, row.expected, row.target) == ((40, 56), (40, 56), (36, 52))
    assert run_command(adapter, [task], tmp_path / "out", scale=4).complete
    record = read_record(tmp_path / "out")
    assert record["launches"][0]["command"][-3] == "1" and record["size_mode"] == "x4"
    made = read_tensor(tmp_path / "out/images/a.png")
    torch.testing.assert_close(made, resize(read_tensor(task.path), (36, 52)), rtol=0, atol=1.01 / 255)


def test_each_image_has_its_launch_and_files(tmp_path, tasks, make_adapter):
    reading = """
import sys
from pathlib import Path
from PIL import Image
source, target, side, text, reference = sys.argv[1:]
image = Image.open(source)
assert int(side) == min(image.size) and Path(text).read_text() == "prompt of " + Path(source).stem
assert Image.open(reference).size == (5, 4)
Path(target).parent.mkdir()
image.save(target)
"""
    adapter = make_adapter(
        per_image=True,
        references=1,
        files={"texts/{stem}.txt": "prompt of {stem}", "run.py": reading},
        command="{python} {scratch}/run.py {input}/{stem}.png {output}/made_{seed}/{stem}.png {side} "
        "{scratch}/texts/{stem}.txt {references}/reference_00.png",
        output="*/{stem}.png",
    )
    write_png(tmp_path / "person.png", torch.rand(3, 4, 5))
    alone = [RestorationTask(task.path, people={"Ann": (tmp_path / "person.png",)}) for task in tasks]
    outcome = run_command(adapter, alone, tmp_path / "out", seed=7)
    assert outcome.complete and outcome.made == 3, outcome.missing
    assert len(read_record(tmp_path / "out")["launches"]) == 3
    with pytest.raises(StagingError, match="Fake needs references"):
        run_command(adapter, tasks, tmp_path / "none")
