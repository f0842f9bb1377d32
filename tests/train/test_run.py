import json

import pytest

from face2scene.common.reproducibility import seed_from
from face2scene.train.run import Run


def test_seed_depends_on_every_part():
    assert seed_from(0, "a") == seed_from(0, "a") < 2**63
    assert len({seed_from(0, "a"), seed_from(1, "a"), seed_from(0, "b"), seed_from("0a")}) == 4


def test_changed_config_raises(tmp_path):
    Run(tmp_path, {"lr": 1, "part": {"steps": 2}, "tracker": None})
    Run(tmp_path, {"lr": 1, "part": {"steps": 2}, "tracker": {"mode": "offline"}})  # how it is looked at is free
    with pytest.raises(ValueError, match=r"part\.steps was 2, is 3.*allow_config_change=true"):
        Run(tmp_path, {"lr": 1, "part": {"steps": 3}})
    assert Run(tmp_path, {"lr": 1, "part": {"steps": 3}}, allow_config_change=True).config["part"]["steps"] == 3


def test_other_base_is_refused(tmp_path):
    first, other = {"dtype": "bf16", "content": "a" * 16}, {"dtype": "bf16", "content": "b" * 16}
    Run(tmp_path, {}).check_base(first)
    Run(tmp_path, {}).check_base(first)
    with pytest.raises(ValueError, match="another base model: content was 'aaaaaaaaaaaaaaaa', is 'bbbbbbbbbbbbbbbb'"):
        Run(tmp_path, {}).check_base(other)
    Run(tmp_path, {}, allow_config_change=True).check_base(other)
    Run(tmp_path, {}).check_base(other)


def test_metrics_of_lost_steps_are_dropped(tmp_path):
    run = Run(tmp_path, {})
    for step in (1, 2, 3):
        run.log({"loss": step / 2}, step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # a kill cut it
    run.forget_after(2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
