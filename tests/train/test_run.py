import json
import logging

import pytest
import torch
from omegaconf import OmegaConf

from face2scene.common.model_files import save_weights
from face2scene.common.reproducibility import seed_from
from face2scene.train.run import Run, open_run


def test_seed_depends_on_every_part():
    assert seed_from(0, "a") == seed_from(0, "a") < 2**63
    assert len({seed_from(0, "a"), seed_from(1, "a"), seed_from(0, "b"), seed_from("0a")}) == 4


def test_changed_config_raises(tmp_path):
    Run(tmp_path, {"lr": 2})  # failed before its first step
    Run(tmp_path, {"lr": 1, "part": {"steps": 2}, "tracker": None}).log({}, 1)
    Run(tmp_path, {"lr": 1, "part": {"steps": 2}, "tracker": {"mode": "offline"}})  # how it is looked at is free
    with pytest.raises(ValueError, match=r"part\.steps was 2, is 3.*allow_config_change=true"):
        Run(tmp_path, {"lr": 1, "part": {"steps": 3}})
    assert Run(tmp_path, {"lr": 1, "part": {"steps": 3}}, allow_config_change=True).config["part"]["steps"] == 3


def test_each_run_in_a_process_has_its_log(tmp_path):
    for name in ("first", "second", "second"):
        Run(tmp_path / name, {})
        logging.getLogger("face2scene").info("of the %s run", name)
    assert "of the second" not in (tmp_path / "first/log.txt").read_text()
    assert (tmp_path / "second/log.txt").read_text().count("of the second run") == 2


def test_other_base_is_refused(tmp_path):
    first, other = {"dtype": "bf16", "content": "a" * 16}, {"dtype": "bf16", "content": "b" * 16}
    Run(tmp_path, {}).check_base(other)  # failed before its first step
    Run(tmp_path, {}).check_base(first)
    Run(tmp_path, {}).log({}, 1)
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


def test_replaced_inputs_are_noticed(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/metadata.parquet").write_text("records")

    def weights(value, about):
        save_weights(tmp_path / "fadex.safetensors", {"a": torch.tensor(value)}, kind="fadex", config={}, about=about)

    def opened(**changes):
        config = {"data": {"root": str(tmp_path / "set")}, "fadex_weights": str(tmp_path / "fadex.safetensors")}
        about = {"name": "run", "paths": {"runs": str(tmp_path)}, "tracker": None, "allow_config_change": False}
        return open_run(OmegaConf.create(config | about | changes))

    weights(1.0, {"steps": 1})
    opened().log({}, 1)
    weights(1.0, {"steps": 2})  # exported again
    opened()
    weights(2.0, {"steps": 2})
    with pytest.raises(ValueError, match="configuration: fadex_weights leads to other content"):
        opened()
    opened(allow_config_change=True)
    (tmp_path / "set/SHA256SUMS").write_text("other")
    with pytest.raises(ValueError, match=r"configuration: data\.root leads to other content"):
        opened()
