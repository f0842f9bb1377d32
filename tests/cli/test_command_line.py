"""The command line that all scripts share: paths, old keys, errors of a user, several runs."""

import logging
import os
import sys

import pytest
from composed_configs import compose_config
from hydra.utils import instantiate
from omegaconf import OmegaConf

from face2scene.cli.command_line import is_user_error, path_values, script, typed_values
from face2scene.common.renamed_keys import RenamedKey
from face2scene.train.run import Run

NAMES = [
    *(
        "plain.png",
        "IMG (1).png",
        "a,b.png",
        "x=1.png",
        "Ann's.png",
        "été à Köln.png",
        "照片 图.png",
        "50%.png",
        "#1.png",
    ),
    *("[old].png", "{a}.png", "a&b;c.png", "what?.png", "a@b!.png", "~tilde.png", "a$b.png", "  two spaces.png"),
    *("C:\\Users\\ann\\pic.png", "null.png", 'say "hi".png', "a:b.png", "${oc.env:HOME}.png", "emoji 🙂.png"),
    *("tab\tname.png", "\\${x}", "\\\\${x}.png", "ends in \\", "a\\'b", "'quoted'", "[a]", "line\nfeed", "true", "1"),
]


@pytest.fixture
def call(monkeypatch):
    """Run `task` as a script with these options."""

    def run(task, *options, **settings):
        monkeypatch.setattr(sys, "argv", ["script.py", *options])
        script("restore", **settings)(task)()

    return run


def test_path_values_are_literal():
    words = [f"input={name}" for name in NAMES]
    read = [compose_config("restore", *path_values([word, "output=o"])).input for word in words]
    assert read == NAMES
    assert typed_values(path_values(words)) == words


@pytest.mark.parametrize("key", ["estimator_weights", "restorer.base.source", "data.gallery", "ref_fr.photomaker"])
def test_weights_and_folders_are_literal_too(key):
    words = [f"{key}={name}" for name in NAMES]
    assert all(word.startswith(f"{key}='") for word in path_values(words)) and typed_values(path_values(words)) == words


def test_other_values_keep_the_grammar():
    words = ["references=null", "guidance=[1.0,1.1]", "seed=1,2", "name=a${seed}", "data.photos=[a,b]", "--cfg", "job"]
    assert path_values(words) == words
    assert path_values(["+data.photos=a,b"]) == ["+data.photos='a,b'"]


def test_script_passes_the_composed_configuration(call):
    seen = []
    call(lambda cfg: seen.append((cfg.input, cfg.seed)), "input=a,${b}.png", "output=o", "seed=3")
    assert seen == [("a,${b}.png", 3)]


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no photo"), ValueError("no photo"), ModuleNotFoundError("no photo")]
)
def test_user_errors_are_one_sentence_and_exit_code_1(call, capsys, monkeypatch, error):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def task(cfg):
        raise error

    with pytest.raises(SystemExit) as end:
        call(task)
    assert end.value.code == 1 and capsys.readouterr().err == "no photo\n"


def test_instantiate_error_is_reported_by_its_cause(call, capsys):
    broken = OmegaConf.create({"_target_": "face2scene.ref_fr.external.External", "command": "x", "version": "1"})
    with pytest.raises(SystemExit):
        call(lambda cfg: instantiate(broken))
    assert capsys.readouterr().err.startswith("ref_fr.command 'x' has to hold {input}")
    assert not is_user_error(TypeError()) and not is_user_error(ZeroDivisionError())


def test_moved_class_names_list_of_new_places(call, capsys):
    moved = OmegaConf.create({"_target_": "face2scene.data.real.Photos", "where": "x"})
    with pytest.raises(SystemExit):
        call(lambda cfg: instantiate(moved))
    error = capsys.readouterr().err
    assert error.startswith("Error loading 'face2scene.data.real.Photos'") and error.count("\n") == 1
    assert "CHANGELOG.md lists those that were renamed" in error


def test_other_errors_and_hydra_full_error_raise(call, monkeypatch):
    def task(cfg):
        raise {}[cfg.seed] if cfg.seed else ValueError("a sentence")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KeyError):
        call(task, "seed=1")
    with pytest.raises(ValueError, match="a sentence"):
        call(task)


def test_required_keys_and_stops(call, capsys):
    with pytest.raises(SystemExit) as end:
        call(lambda cfg: None, "output=a", required=["input", "output"])
    assert end.value.code == 1 and "input=... is missing" in capsys.readouterr().err

    def interrupt(cfg):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        call(interrupt)
    assert end.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_multirun_separates_folders_and_goes_on(call, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    def task(cfg):
        seen.append((cfg.seed, cfg.output))
        if cfg.seed == 1:
            raise ValueError("the first fails")

    with pytest.raises(SystemExit) as end:
        call(task, "-m", "seed=1,2", "input=a", "output=out,${x}")
    assert end.value.code == 1 and "the first fails" in capsys.readouterr().err
    assert seen == [(1, "out,${x}/seed=1"), (2, "out,${x}/seed=2")]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["runs/multirun/multirun.yaml"]


def test_runs_of_m_have_logs_and_accelerators(call, monkeypatch, tmp_path, no_accelerator_of_another_test):
    from accelerate import Accelerator

    monkeypatch.chdir(tmp_path)

    def task(cfg):
        Accelerator(cpu=True, mixed_precision={"fp32": "no"}.get(cfg.dtype, cfg.dtype))
        run = Run(tmp_path / cfg.output, {})
        logging.getLogger("test").info("run with %s", cfg.dtype)
        assert run.folder.name == f"dtype={cfg.dtype}"

    call(task, "dtype=fp32,bf16", "-m", "input=a", "output=out", level=logging.INFO)
    for dtype in ("fp32", "bf16"):
        lines = (tmp_path / f"out/dtype={dtype}/log.txt").read_text().splitlines()
        assert [line.split(" INFO ")[1] for line in lines] == [f"run with {dtype}"]


def test_hydra_errors_name_the_nearest(call, capsys):
    for words, said in {
        ("pipeline.til=2",): "no key pipeline.til (did you mean pipeline.tile?)",
        ("fidelity=0.5",): "did you mean pipeline.fidelity?",
        ("ref_fr=real_esgan",): "no ref_fr=real_esgan (did you mean real_esrgan?): choose codeformer",
        ("seed=1,2",): "-m runs one after another",
        ("seed=[1,",): "seed=[1, cannot be read",
        ("+seed=2",): "seed=... changes it",
    }.items():
        with pytest.raises(SystemExit) as end:
            call(lambda cfg: None, *words)
        error = capsys.readouterr().err
        assert end.value.code == 2 and said in error and error.count("\n") == 1


def test_debug_shows_the_traceback(call, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def task(cfg):
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ValueError("a sentence")

    with pytest.raises(ValueError, match="a sentence"):
        call(task, "--debug")


def test_old_keys_are_refused_everywhere(call, capsys, tmp_path):
    def error_of(*options):
        with pytest.raises(SystemExit) as end:
            call(lambda cfg: None, *options)
        assert end.value.code == 1
        return capsys.readouterr().err

    assert "Keys of the command line" in error_of("shipped_probe=x")
    assert "truth is now gt" in error_of("-m", "truth=x,y", "input=a", "output=b")
    for group in ("experiment", "train"):
        (tmp_path / group).mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ntrain: {fadex: {whiten: {power: 1}}}\n")
    (tmp_path / "train/mine.yaml").write_text("restorer: {critic: null}\n")
    error = error_of("--config-dir", str(tmp_path), "experiment=mine")
    assert "experiment=mine" in error and "train.fadex.whiten is now train.fadex.head" in error
    error = error_of("--config-dir", str(tmp_path), "train=mine")
    assert "train=mine" in error and "train.restorer.critic is now train.restorer.discriminator" in error
    (tmp_path / "config.yaml").write_text("train: {fadex: {whiten: null}}\n")
    (tmp_path / "metrics.jsonl").touch()  # a run that has trained
    with pytest.raises(RenamedKey, match=r"config\.yaml .*is now train\.fadex\.head"):
        Run(tmp_path, {"train": {"fadex": {"head": None}}})
