"""The quickstart's steps: commands that exist, whose files feed one another, each in a process of its own."""

import re
import shlex

import pytest
from composed_configs import compose_config

from face2scene.cli import options
from face2scene.cli.commands import quickstart
from face2scene.common.files import read_json


@pytest.mark.parametrize("name", quickstart.STEPS)
def test_every_step_is_a_command(name):
    command, *words = shlex.split(quickstart.STEPS[name])
    options.read(command, words)
    compose_config(command.replace("-", "_"), *words)


def test_every_folder_read_was_written():
    written: set[str] = set()
    for command in quickstart.STEPS.values():
        words = dict(word.split("=", 1) for word in shlex.split(command)[1:])
        run = f"runs/{words['name']}" if "name" in words else ""
        if command.startswith("build-inscene"):
            written.add(words.get("data.root", quickstart.DATA))
        else:
            read = [words.get(key, "") for key in ("input", "restorer_weights", "fadex_weights", "dataset")]
            read += [words.get("data.root", "")]
            for path in filter(None, read):
                assert path in written or "checkpoints" in path or any(path.startswith(f"{one}/") for one in written)
        written |= {words.get("output", ""), run} - {""}
    assert {f"{quickstart.RUN}/{row}" for row in ("trained_here", "restored", "wrong_tokens")} <= written


def test_failed_step_stops_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "RUN", tmp_path)
    monkeypatch.setattr(quickstart, "_STOP", type(quickstart._STOP)())
    steps = {"one": "fetch one", "two": "fetch two", "three": "fetch three"}
    monkeypatch.setattr(quickstart, "STEPS", steps)
    ran = []

    def run_step(words, log, threads):
        ran.append(words)
        if log is not None:
            log.parent.mkdir(exist_ok=True)
            log.write_text("what it said\n")
        return 3 if "two" in words else 0

    monkeypatch.setattr(quickstart, "run_step", run_step)
    seconds = {"one": 99.0}
    with pytest.raises(SystemExit, match=r"(?s)what it said.*Step 2 \(two\) ended with code 3.*face2scene fetch two"):
        quickstart.run_steps(steps, seconds, 1, quietly=True)
    assert [words[1] for words in ran] == ["one", "two"]
    assert read_json(tmp_path / "seconds.json") == {"one": 99.0}  # the longest of several runs is kept
    quickstart.run_steps({"three": "fetch three"}, seconds, 1)  # of the lane beside it: not started any more
    assert len(ran) == 2 and re.search(r"\[1/3\] one, beside the trainings", capsys.readouterr().out)


def test_step_is_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "IMPORTED", ["torch"])
    log = tmp_path / "log/list.txt"
    assert quickstart.run_step(["fetch", "--list"], log, 1) == 0
    assert "group quickstart: facegen" in log.read_text()
    assert quickstart.run_step(["fetch", "no_such_asset"], log, 1) == 1
    assert "no_such_asset" in log.read_text()
