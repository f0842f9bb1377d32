"""The package's layout: which room may import which, and how large folders and files may become."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from face2scene.common.reproducibility import REPOSITORY

PACKAGE = REPOSITORY / "face2scene"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A room imports from those before it and never from those after it. This is the only place that states the order.
ROOMS = (
    *("common", "image_io", "assets", "degradation", "faces", "ref_fr", "models"),
    *("data", "inference", "train", "eval", "cli"),
)
MAX_LINES = 400  # of a module
MAX_FILES = 15  # of a folder
MAX_LOOSE = 2  # modules at the package's top, beside __init__.py and __main__.py


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


def imported_modules(path: Path, *, deferred: bool = True) -> Iterator[str]:
    """Modules of the package that a file imports; without `deferred` only those imported when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not deferred and id(node) in inside:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: name the module in full."
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found = [name for name in names if name in NAMES]
        yield from found[1:] or found  # `from package import module` is an import of the module


def room_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_rooms_are_the_folders():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_to_earlier_rooms(path: Path):
    room = room_of(path)
    if room is None:
        return  # the package's own __init__ and __main__
    backwards = [
        f"{path.relative_to(REPOSITORY)} imports {NAMES[name].relative_to(REPOSITORY)}, and {room} comes before {other}"
        for name in imported_modules(path)
        if (other := room_of(NAMES[name])) is not None and ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not backwards, "\n".join(backwards)


def test_no_modules_import_each_other():
    graph = {name: set(imported_modules(path)) - {name} for name, path in NAMES.items()}
    graph["face2scene"].clear()  # its names are imported on first use
    while leaves := [name for name, needed in graph.items() if not needed]:
        for name in leaves:
            del graph[name]
        for needed in graph.values():
            needed.difference_update(leaves)
    # What is left imports something that leads back to it, or stands before such a circle.
    assert not graph, f"these modules import each other in a circle: {', '.join(sorted(graph))}"


def test_no_test_module_imports_another():
    """Nor does a program that a test holds as text. What tests share stands in tests/support and in conftest.py."""
    tests = REPOSITORY / "tests"
    names = "|".join({path.stem for path in tests.rglob("test_*.py")})
    of_one = rf"from\s+(?:[\w.]+\.)?(?:{names})\s+import\b|(?:from\s+[\w.]+\s+)?import\b.*\b(?:{names})\b"
    pattern = re.compile(rf"^\s*(?:{of_one}).*", re.MULTILINE)
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in sorted(tests.rglob("*.py"))
        for line in pattern.findall(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_folders_and_files_stay_small():
    loose = [p.name for p in PACKAGE.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    assert len(loose) <= MAX_LOOSE, loose
    for folder in {path.parent for path in MODULES}:
        files = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(files) <= MAX_FILES, f"{folder.relative_to(REPOSITORY)} holds {len(files)} modules"
    for path in MODULES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(REPOSITORY)} has {lines} lines"


def test_map_shows_the_imports_of_today(tmp_path):
    drawn = tmp_path / "rooms.svg"
    subprocess.run([sys.executable, REPOSITORY / "scripts/draw_rooms.py", drawn], check=True, timeout=60)
    assert drawn.read_bytes() == (REPOSITORY / "docs/rooms.svg").read_bytes(), "run python scripts/draw_rooms.py"


def test_readme_names_files_that_exist():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert len(links) > 20
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    assert not missing, missing
