"""A disk that fills while a command works: one sentence, nothing half-written, and the same command goes on later."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from scripts_here import SHIPPED, TINY, run_script

from face2scene.image_io.arrays import write_png

pytestmark = pytest.mark.usefixtures("no_accelerator_of_another_test", "own_argv")


class Disk:
    """After `writes` more files a disk takes no other one; `error` says why."""

    def __init__(self, monkeypatch, writes: int, error: int):
        self.left, self.error = writes, error
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self._limited(getattr(os, name)))

    def _limited(self, real):
        def limited(source, target, **options):
            if self.left == 0:
                raise OSError(self.error, os.strerror(self.error), str(source), None, str(target))
            self.left -= 1
            return real(source, target, **options)

        return limited


def restore(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    for number in range(2):
        write_png(folder / f"in/{number}.png", np.full((64, 64, 3), 0.2 + 0.3 * number, np.float32))
    return "restore.py", [f"input={folder}/in", f"output={folder}/out", "faces=none", "device=cpu", SHIPPED]


def build(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    return "build_inscene.py", ["data=tiny", "degradation=tiny", "faces=none", f"data.root={folder}/set"]


def train(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    options = [f"data.root={tiny_set}", "name=run", f"paths.runs={folder}/runs", SHIPPED]
    return "train_fadex.py", [*TINY, *options, "train.fadex.schedule.save_every=1"]


def precompute(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    options = [
        "data=tiny",
        "degradation=tiny",
        "ref_fr=faceme_tiny",
        "ref_fr.steps=1",
        f"data.root={tiny_set}",
        f"cache={folder}/cache",
    ]
    return "precompute_ref_fr.py", [*options, "batch=1"]


def evaluate(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    options = [f"predictions={tiny_set}/lq/val/000", f"gt={tiny_set}", "name=scores", "metrics=[psnr]"]
    return "eval.py", [*options, f"paths.runs={folder}/runs", "device=cpu"]


def export(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    return "export.py", [f"output={folder}/exported", "parts=[merged]", SHIPPED]


def redegrade(folder: Path, tiny_set: Path) -> tuple[str, list[str]]:
    return "redegrade.py", ["data=tiny", f"data.root={tiny_set}", f"output={folder}/again", "degradation=mild"]


CASES = [(restore, 1), (build, 0), (build, 5), (train, 0), (train, 3), (precompute, 2), (evaluate, 0), (export, 0)]
CASES += [(redegrade, 0)]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize(("make", "writes"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_full_disk_is_one_sentence(make, writes, error, tmp_path, tiny_set, monkeypatch, capsys):
    name, overrides = make(tmp_path, tiny_set)
    with monkeypatch.context() as patch:
        Disk(patch, writes, error)
        code = run_script(name, overrides)
    said = capsys.readouterr()
    assert code == 1 and "Traceback" not in said.out + said.err
    assert sum(os.strerror(error) in line for line in said.err.splitlines()) >= 1, said.err
    assert not list(tmp_path.rglob("*partial*"))
    assert run_script(name, overrides) == 0, capsys.readouterr().err


def test_full_disk_of_a_sweep(tmp_path, tiny_set, monkeypatch, capsys):
    options = ["sweep=cfg", "data=tiny", f"data.root={tiny_set}", "name=s", f"paths.runs={tmp_path}/runs", SHIPPED]
    real = os.open

    def full(path, flags, *rest, **options):
        if flags & os.O_CREAT and str(tmp_path) in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", full)
    code = run_script("sweep.py", options)
    said = capsys.readouterr()
    assert code == 1 and "Traceback" not in said.out + said.err
    assert "Nothing more can be written" in said.err.splitlines()[-1]


def test_full_log_ends_with_a_sentence(tmp_path, capsys):
    import logging

    from face2scene.train.run import _log_to, _RunLog

    (tmp_path / "log.txt").symlink_to("/dev/full")
    before = logging.getLogger().handlers[:]
    try:
        _log_to(tmp_path / "log.txt")
        logging.getLogger("face2scene").warning("first")
        others = [one for one in before if not isinstance(one, _RunLog)]
        assert logging.getLogger().handlers == others  # it is asked once
    finally:
        logging.getLogger().handlers[:] = before
    assert "Traceback" not in capsys.readouterr().err
