"""Training states are whole or passed over, and nothing in them can run code."""

import pickle
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from face2scene.common.files import sha256_of
from face2scene.train.checkpoint import states
from face2scene.train.ema import EMA
from face2scene.train.loop import Phase, Schedule, train
from face2scene.train.run import Run

pytestmark = pytest.mark.usefixtures("no_accelerator_of_another_test")


class Images:
    """Batch `index` is a function of `index` alone."""

    def __getitem__(self, index):
        return torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(index))


class Task:
    """A network with its channels last, a frozen layer and an average; `break_at` makes its weights infinite."""

    def __init__(self, break_at=None, metrics=(), weight_decay=0.01):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
        self.model[2].requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=weight_decay)
        self.phases = [Phase("net", self.model, optimizer, self.losses)]
        self.stateful = [EMA(self.model, 0.9)]
        self.data, self.break_at, self.metrics = Images(), break_at, list(metrics)
        self.steps = 0

    def losses(self, batch):
        return {"l2": (self.phases[0].model(batch) - batch[..., 2:-2, 2:-2]).square().mean()}

    def after_step(self):
        self.stateful[0].update()
        self.steps += 1
        if self.steps == self.break_at:
            self.model[0].weight.data[0] = float("inf")

    def validate(self):
        return {"validation/l2": self.metrics.pop(0)} if self.metrics else {}

    def export(self, folder, step):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step.txt").write_text(str(step))


def train_to(folder, steps, *, best="", **task):
    forget_processes()
    made = Task(**task)
    schedule = Schedule(steps=steps, log_every=1, validate_every=1, save_every=2, best=best)
    train(made, Accelerator(cpu=True), schedule, Run(folder, {}), seed=1)
    return made


def all_tensors(task):
    optimizer = task.phases[0].optimizer.state_dict()["state"]
    moments = {f"{n}.{key}": value for n, values in optimizer.items() for key, value in values.items()}
    averages = {f"ema.{name}": value for name, value in task.stateful[0].values.items()}
    return {**task.model.state_dict(), **moments, **averages}


def same(one, other):
    both = all_tensors(one), all_tensors(other)
    return both[0].keys() == both[1].keys() and all(torch.equal(t, both[1][name]) for name, t in both[0].items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A training of six steps, and the folder of one that stopped after four with states 2 and 4."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_to(folder / "stopped", 4)
    return train_to(folder / "whole", 6), folder / "stopped"


def test_state_holds_no_pickle_and_checks_itself(undisturbed):
    folder = undisturbed[1] / "state/4"
    names = {"model.safetensors", "training.safetensors", "SHA256SUMS"}
    assert {path.name for path in folder.iterdir()} == names
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == names - {"SHA256SUMS"}
    assert all(sha256_of(folder / name) == digest for digest, name in lines)
    assert not any(name.startswith("2.") for name in load_file(folder / "model.safetensors"))  # frozen


def test_resume_keeps_memory_layout(undisturbed, tmp_path):
    whole, stopped = undisturbed
    shutil.copytree(stopped, tmp_path / "run")
    resumed = train_to(tmp_path / "run", 6)
    assert resumed.steps == 2 and same(resumed, whole)
    moment = resumed.phases[0].optimizer.state_dict()["state"][0]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)


def test_resume_takes_changed_optimizer_settings(undisturbed, tmp_path):
    whole, stopped = undisturbed
    shutil.copytree(stopped, tmp_path / "run")
    resumed = train_to(tmp_path / "run", 6, weight_decay=0.5)
    assert resumed.steps == 2 and not same(resumed, whole)
    assert resumed.phases[0].optimizer.param_groups[0]["weight_decay"] == 0.5


def empty(path):
    path.write_bytes(b"")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [empty, halve, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "SHA256SUMS"])
def test_damaged_state_is_passed_over(undisturbed, tmp_path, caplog, name, damage):
    whole, stopped = undisturbed
    shutil.copytree(stopped, tmp_path / "run")
    damage(tmp_path / "run/state/4" / name)
    resumed = train_to(tmp_path / "run", 6)
    assert resumed.steps == 4 and same(resumed, whole)
    assert "state/4 is passed over" in caplog.text
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert lines == (stopped.parent / "whole/metrics.jsonl").read_text()


def test_no_whole_state_is_refused(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    for state in (tmp_path / "run/state").iterdir():
        empty(state / "SHA256SUMS")
    with pytest.raises(ValueError, match=r"None of the training states in .*Remove that folder"):
        train_to(tmp_path / "run", 6)


def test_older_whole_state_outlives_newer_damage(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    empty(tmp_path / "run/state/4/training.safetensors")
    with pytest.raises(FloatingPointError):
        train_to(tmp_path / "run", 5, break_at=3)  # of the repeated steps: 3, 4, 5
    assert train_to(tmp_path / "run", 6).steps == 2  # from the state 4 that was written again


def as_earlier_version(folder):
    """A state as accelerate wrote it, with pickles."""
    (folder / "SHA256SUMS").unlink()
    task = Task()
    task.phases[0].model(torch.rand(2, 8, 6, 6)).sum().backward()
    task.phases[0].optimizer.step()
    save_file({k: v.contiguous() for k, v in task.model.state_dict().items()}, folder / "model.safetensors")
    torch.save(task.phases[0].optimizer.state_dict(), folder / "optimizer.bin")
    torch.save({"step": 4, "batch": 4, "best": None}, folder / "custom_checkpoint_0.pkl")
    torch.save(task.stateful[0].state_dict(), folder / "custom_checkpoint_1.pkl")
    (folder / "training.safetensors").unlink()
    return task


def test_state_of_earlier_version_is_read(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    earlier = as_earlier_version(tmp_path / "run/state/4")
    resumed = train_to(tmp_path / "run", 4)
    assert resumed.steps == 0 and same(resumed, earlier)


class RunsCode:
    def __reduce__(self):
        return (print, ("code of a pickle ran",))


@pytest.mark.parametrize("name", ["optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"])
def test_pickled_code_never_runs(undisturbed, tmp_path, capsys, caplog, name):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    as_earlier_version(tmp_path / "run/state/4")
    (tmp_path / "run/state/4" / name).write_bytes(pickle.dumps(RunsCode()))
    assert train_to(tmp_path / "run", 6).steps == 4
    assert "code of a pickle ran" not in capsys.readouterr().out
    assert "state/4 is passed over: an earlier version wrote it" in caplog.text


def add_sums(folder):
    sums = [f"{sha256_of(p)}  {p.name}\n" for p in sorted(folder.iterdir()) if p.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(sums))


def test_other_settings_are_named(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    folder = tmp_path / "run/state/4"
    weights = load_file(folder / "model.safetensors")
    for others, words in (
        ({"another": torch.zeros(1)}, r"missing \['0.bias', .*unknown \['another'\]"),
        (weights | {"0.bias": torch.zeros(3)}, r"missing \[\], unknown \[\], of another shape \['0.bias'\]"),
    ):
        save_file(others, folder / "model.safetensors")
        add_sums(folder)
        with pytest.raises(ValueError, match=f"not fit Sequential: {words}"):
            train_to(tmp_path / "run", 6)


def no_tensors(path):
    path.write_bytes(b"\xff" * 7 + b"\x7f{}")


def no_tree(path):
    save_file({"a": torch.zeros(1)}, path)


def other_tree(path):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        tree = file.metadata()["tree"]
    assert '"best"' in tree and "betas" in tree
    save_file(tensors, path, metadata={"tree": tree.replace('"best"', '"other"').replace('"lr"', '"rate"')})


def tree_of_a_list(path):
    save_file({"a": torch.zeros(1)}, path, metadata={"tree": "[1, 2]"})


ODD = [("model", empty), ("model", no_tensors)]
ODD += [("training", damage) for damage in (empty, no_tensors, no_tree, tree_of_a_list, other_tree)]


@pytest.mark.parametrize(("name", "damage"), ODD)
def test_odd_content_is_passed_over(undisturbed, tmp_path, caplog, name, damage):
    whole, stopped = undisturbed
    shutil.copytree(stopped, tmp_path / "run")
    damage(tmp_path / f"run/state/4/{name}.safetensors")
    add_sums(tmp_path / "run/state/4")
    resumed = train_to(tmp_path / "run", 6)
    assert resumed.steps == 4 and same(resumed, whole)
    assert "state/4 is passed over: its" in caplog.text


def test_infinite_weights_are_not_saved(undisturbed, tmp_path):
    whole, _ = undisturbed
    with pytest.raises(FloatingPointError, match=r"not finite after step 4 \(0\.weight\): they are neither saved"):
        train_to(tmp_path / "run", 6, break_at=4, best="validation/l2", metrics=[3.0, 2.0, 2.0, 1.0])
    assert [path.name for path in states(Run(tmp_path / "run", {}))] == ["2"]
    assert (tmp_path / "run/weights/best/step.txt").read_text() == "2"
    assert not (tmp_path / "run/weights/step.txt").exists()
    assert same(train_to(tmp_path / "run", 6), whole)  # the same command goes on


def test_best_is_never_nan(tmp_path):
    nan = float("nan")
    train_to(tmp_path / "run", 4, best="validation/l2", metrics=[nan, 2.0, nan, 3.0])
    assert (tmp_path / "run/weights/best/step.txt").read_text() == "2"
    with safe_open(tmp_path / "run/state/4/training.safetensors", "pt") as file:
        assert '["best", 2.0]' in file.metadata()["tree"]
    assert Schedule(steps=1, best="a").improves({"a": 1.0}, nan)  # of a state of an earlier version


def test_leftovers_of_a_kill_are_removed(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    (tmp_path / "run/state/.5.partial").mkdir()
    for name in ("", "weights/best/", "validation/000002/"):
        (tmp_path / "run" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name / ".a.999999.partial.png").touch()
    train_to(tmp_path / "run", 6)
    assert not list((tmp_path / "run").rglob(".a.*"))
    assert sorted(path.name for path in (tmp_path / "run/state").iterdir()) == ["4", "6"]


def test_scaler_state_survives(tmp_path):
    from face2scene.train.checkpoint import TrainingState

    def of(scale):
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator.scaler.scale(torch.ones(()))  # it is made when it is first used
        return TrainingState(accelerator, Run(tmp_path, {}), [], [], [])

    of(2.0**9).save(1, keep=1)
    fresh = of(2.0**16)
    fresh.resume()
    assert fresh.accelerator.scaler.get_scale() == 2.0**9


def test_full_disk_is_refused_before_the_first_step(tmp_path, monkeypatch):
    room = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with pytest.raises(ValueError, match=r"1\.0 kB free and 3 training states need [1-9][\d.]* \wB: set paths\.runs"):
        train_to(tmp_path / "run", 1)
    assert not (tmp_path / "run/state").exists() and not (tmp_path / "run/metrics.jsonl").exists()
