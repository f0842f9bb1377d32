"""Help on one screen, options in the place of KEY=VALUE, and nearest names for what is misspelt."""

import re
import runpy
import subprocess
import sys

import pytest

from face2scene.cli import main
from face2scene.cli.config_text import keys, layers
from face2scene.cli.options import COMMANDS, UsageError, options, parser_of, read
from face2scene.common.reproducibility import REPOSITORY

OTHERS = ("quickstart", "rehearse", "fetch", "doctor", "data", "explain", "completion")


@pytest.mark.parametrize("words", [[], *([name] for name in (*COMMANDS, *OTHERS))], ids=" ".join)
def test_help_fits_a_window_of_80_by_40(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main.main([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(lines) <= 40 and max(map(len, lines)) <= 80
    assert any(line.startswith(f"example: {' '.join(['face2scene', *words])}") for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_one_screen_with_defaults(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        main.main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and len(text.splitlines()) <= 30
    assert f"usage: face2scene {name} " in text and f"example: face2scene {name} " in text
    assert "${" not in text
    undescribed = re.findall(r"^ +(--\S+) [A-Z]+ +\(default", text, re.M)
    assert not undescribed
    known = keys(name.replace("-", "_"))
    for key, flags in options(name).items():
        assert flags[-1] in text and key in known
        if isinstance(known[key].default, int | float) and not isinstance(known[key].default, bool):
            assert f"(default: {known[key].default})" in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_read(name):
    _, command, *words = COMMANDS[name].example.split()
    assert command == name and (read(name, words).overrides or not words)


def test_options_are_overrides():
    line = "a.png -r refs -o out --scale 2 --overwrite pipeline.tile=auto -m seed=1,2"
    words = read("restore", line.split())
    assert words.hydra == ["--multirun"] and not words.photos and not words.debug
    given = {"references=refs", "output=out", "scale=2", "overwrite=true", "pipeline.tile=auto", "seed=1,2"}
    assert set(words.overrides) == given | {"input=a.png"}
    assert read("eval", ["p", "--metrics", "psnr,lpips"]).overrides == ["metrics=[psnr,lpips]", "predictions=p"]
    assert read("restore", ["--ref-fr=copy", "--fidelity", "0.8"]).overrides == ["pipeline.fidelity=0.8", "ref_fr=copy"]


@pytest.mark.parametrize("name", ["-lead.png", "--output.png", "-r", "--help", "seed=1", "data=tiny", "--", "+a=b.png"])
def test_words_behind_two_dashes_are_photos(name):
    words = read("restore", ["-o", "out", "--", name])
    assert words.overrides == ["output=out", f"input={name}"]
    assert read("restore", ["a.png", "-o", "out", "--", name]).photos == ["a.png", name]
    with pytest.raises(UsageError, match="is no option of face2scene train-fadex"):
        read("train-fadex", ["name=a", "--", name])


@pytest.mark.parametrize("name", ["./data=tiny", "/none/seed=1.png", "../a=b.png", "./scale=2/b.png"])
def test_paths_are_no_overrides(name):
    """Whether there is such a file or not."""
    assert read("restore", [name, "-o", "out"]).overrides == ["output=out", f"input={name}"]


def test_photos_are_words_or_i(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=1.png").write_bytes(b"")
    words = read("restore", ["-i", "a.png", "b [1].png", "x=1.png", "-o", "out", "seed=1"])
    assert words.photos == ["a.png", "b [1].png", "x=1.png"] and words.overrides == ["seed=1", "output=out"]
    with pytest.raises(UsageError, match=r"'a\.png' and input=\.\.\. are both given"):
        read("restore", ["a.png", "input=b.png"])


@pytest.mark.parametrize(
    ("name", "words", "meant"),
    [
        ("restore", ["--sacle", "2"], r"has no --sacle \(did you mean --scale\?\)"),
        ("restore", ["--max-faces=2"], r"did you mean pipeline\.max_faces=VALUE\?"),
        ("restore", ["--cfg", "jo"], "did you mean job"),
        ("restore", ["-o"], "expected one argument"),
        ("restore", ["scale=two"], "scale is a number above 0, and 'two' was given"),
        ("restore", ["seed=null"], "seed is a whole number from 0 to 4294967295"),
        ("restore", ["overwrite=no"], "overwrite is true or false"),
        ("restore", ["pipeline=3"], "pipeline is a group of keys"),
        ("eval", ["metrics=psnr"], r"metrics is a list, such as metrics=\[psnr\]"),
        ("eval", ["one", "two"], "'two' is no option of face2scene eval"),
        ("train-fadex", ["quickstart"], "'quickstart' is no option"),
    ],
)
def test_misspelt_words_get_the_nearest(name, words, meant, capsys):
    with pytest.raises(UsageError, match=meant):
        read(name, words)
    assert main.main([name, *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "word",
    ["pipeline.tile=auto", "pipeline.tile=null", "guidance=[1,1.1]", "train.fadex.head=null", "seed=${x}", "scale=2.5"],
)
def test_documented_words_are_taken(word):
    assert read("restore", [word]).overrides == [word]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("fetch --ofline", "--offline"),
        ("fech", "fetch"),
        ("--verzion", "--version"),
        ("data --verfy a", "verify"),
        ("data pack --per-shrd=3", "--per-shard"),
        ("explain --fiel a", "FILE"),
        ("completion --shel bash", "SHELL"),
        ("rehearse --gpus two --crd a6000", "--card"),
        ("restore --sacle 2 -o", "--scale"),
        ("data pak", "pack"),
    ],
)
def test_misspelling_is_answered_first(line, meant, capsys):
    assert main.main(line.split()) == 2
    error = capsys.readouterr().err
    assert f"did you mean {meant}?" in error and error.count("\n") == 1


def test_help_all_prints_the_chosen_files(capsys):
    with pytest.raises(SystemExit):
        read("restore", ["--help-all", "restorer=tiny"])
    text = capsys.readouterr().out
    assert (
        "# restorer/tiny.yaml" in text and "# configs/restore.yaml" in text and "# restorer/sd_turbo.yaml" not in text
    )
    assert "scale: 1 # of the sides" in text


def test_keys_are_those_that_hydra_composes(tmp_path):
    from composed_configs import compose_config
    from omegaconf import OmegaConf

    for root, words in [("restore", ["experiment=quickstart"]), ("train_fadex", []), ("sweep", []), ("app", [])]:
        composed, ours = compose_config(root, *words), keys(root, words)
        for key, entry in ours.items():
            value = OmegaConf.select(composed, key, throw_on_resolution_failure=False, throw_on_missing=False)
            if isinstance(entry.default, int | float) and not re.search(r"\.\d", key):
                assert value == pytest.approx(entry.default), (root, key)
    assert [layer.path.stem for layer in layers("restore", ["ref_fr=copy"]) if layer.package == "ref_fr"] == ["copy"]


def test_script_shows_the_same_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / "scripts/export.py"), run_name="__main__")
    assert capsys.readouterr().out == parser_of("export").format_help()


def test_completion_knows_names_without_torch(capsys):
    ask = (
        "import sys; from face2scene.cli.main import main;"
        "main(['completion', 'bash', 'face2scene restore ref_fr=re']);"
        "print('torch' in sys.modules, 'hydra' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["ref_fr=real_esrgan", "ref_fr=restoreformer", "False", "False", "False"]
    for line, found in {
        "face2scene re": "restore",
        "face2scene restore --ref-fr co": "codeformer",
        "face2scene restore photo.png pipeline.fi": "pipeline.fidelity=",
        "face2scene restore format=w": "format=webp",
        "face2scene fetch yun": "yunet",
        "face2scene data pack --per": "--per-shard",
        "face2scene rehearse --ca": "--card",
    }.items():
        main.main(["completion", "zsh", line])
        assert found in capsys.readouterr().out.splitlines()


def test_bash_completes_a_value(tmp_path):
    script = (
        f'face2scene() {{ {sys.executable} -m face2scene "$@"; }}; compopt() {{ :; }};'
        'eval "$(face2scene completion bash)";'
        'COMP_LINE="face2scene restore ref_fr=real"; COMP_POINT=${#COMP_LINE}; _face2scene; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "real_esrgan"
