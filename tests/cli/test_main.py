import subprocess
import sys
from pathlib import Path

import pytest

from face2scene.assets import catalogue
from face2scene.cli import commands, doctor, main
from face2scene.cli.options import COMMANDS
from face2scene.common.reproducibility import REPOSITORY


def test_startup_does_not_import_torch():
    ask = "import sys, face2scene.cli.main; print('torch' in sys.modules, 'tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_fetch_list_shows_licence_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    assert main.main(["fetch", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for asset in catalogue.catalogue().values():
        (line,) = (line for line in lines if line.split()[1] == asset.name and line.startswith("missing"))
        assert asset.licence in line and f"face2scene fetch {asset.name}" in line


def test_fetch_without_name_prints_usage(capsys):
    assert main.main(["fetch"]) == 2
    assert "--all-open" in capsys.readouterr().err


def test_failed_fetch_prints_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    assert main.main(["fetch", "yunet", "--offline"]) == 1
    error = capsys.readouterr().err
    assert "this run is offline" in error and "Traceback" not in error


def test_weights_folder_is_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path / "file"))
    assert main.main(["fetch", "yunet", "--offline"]) == 1
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run-baseline", "run_baseline"])
def test_commands_get_their_words(monkeypatch, name):
    seen = []
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(main.runpy, "run_module", lambda module, **_: seen.extend([module, *sys.argv[1:]]))
    assert main.main([name, "input=a.png", "output=b", "--cfg", "job"]) == 0
    assert seen == ["face2scene.cli.commands.run_baseline", "input=a.png", "output=b", "--cfg", "job"]


def test_launcher_is_watched_before_the_imports(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(main, "end_with_launcher", lambda: seen.append("watched"))
    monkeypatch.setattr(main.runpy, "run_module", lambda *_, **__: seen.append("imported"))
    assert main.main(["train-fadex"]) == 0 and seen == ["watched", "imported"]


def test_every_command_is_listed_and_has_a_door():
    modules = {path.stem for path in Path(commands.__path__[0]).glob("[!_]*.py")}
    assert {name.replace("-", "_") for name in COMMANDS} | {"quickstart"} == modules
    doors = {path.stem: path.read_text() for path in (REPOSITORY / "scripts").glob("*.py")}
    for name in (*COMMANDS, "quickstart"):
        assert f'main(["{name}", *sys.argv[1:]])' in doors[name.replace("-", "_")]


def test_doctor_lists_missing_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(doctor, "_why_not_importable", lambda module: "not installed" if module == "dlib" else "")
    assert main.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "pip install 'face2scene[quickstart]'" in out and "face2scene fetch facegen" in out
    assert "device:" in out and "free memory:" in out and "Licences of the assets" in out


def test_doctor_passes_when_complete(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_why_not_importable", lambda module: "")
    monkeypatch.setattr(doctor, "_tiny_obstacles", lambda failures: [])
    assert main.main(["doctor"]) == 0
    assert "works here" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--version"], ["--help"], ["fetch", "--help"], ["restore", "--help"]])
def test_help_and_version_exit_zero(options, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(options)
    assert ended.value.code == 0 and capsys.readouterr().out
