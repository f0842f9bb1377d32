"""The documentation's pages, pictures and notebooks."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_blocks import pages

from face2scene.common.reproducibility import REPOSITORY

DOCS = REPOSITORY / "docs"
MOST_BYTES = 3_000_000  # of all pictures
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_links_lead_to_files():
    missing = []
    for page in pages():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)|src=\"(?!https?:)([^\"]+)\"", text):
            target = (page.parent / (link[0] or link[1])).resolve()
            if not target.exists():
                missing.append(f"{page.relative_to(REPOSITORY)} -> {link[0] or link[1]}")
    assert not missing, missing


def test_navigation_names_pages_that_exist():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:", lambda loader, suffix, node: None)
    nav = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    named = re.findall(r"'([\w/.]+\.md)'", str(nav))
    assert len(named) > 20
    assert [name for name in named if not (DOCS / name).is_file()] == []


def test_api_pages_name_what_is_there():
    """Looked up in the source, as the site's generator does."""
    names = [
        name
        for page in sorted((DOCS / "api").glob("*.md"))
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    assert len(names) > 30
    for name in names:
        module, _, attribute = name, "", ""
        path = REPOSITORY / f"{module.replace('.', '/')}.py"
        if not path.is_file():
            module, _, attribute = name.rpartition(".")
            path = REPOSITORY / f"{module.replace('.', '/')}.py"
        defined = {getattr(node, "name", "") for node in ast.parse(path.read_text(encoding="utf-8")).body}
        assert not attribute or attribute in defined, name


def test_method_figure_is_of_today(tmp_path):
    script = [sys.executable, REPOSITORY / "scripts/draw_method.py", tmp_path / "method.svg"]
    subprocess.run(script, check=True, timeout=60)
    drawn = (tmp_path / "method.svg").read_bytes()
    assert drawn == (DOCS / "images/method.svg").read_bytes(), "run python scripts/draw_method.py"


def test_pictures_are_small_and_used():
    pictures = [path for path in (DOCS / "images").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in pictures) < MOST_BYTES
    texts = "".join(page.read_text(encoding="utf-8") for page in pages())
    assert [path.name for path in pictures if path.name not in texts] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path, monkeypatch, capsys):
    """Cell by cell in this process, the last expression of each as a notebook shows it."""
    monkeypatch.setenv("NOTEBOOK_SIZE", "96")
    monkeypatch.chdir(tmp_path)
    space: dict = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        assert not cell.get("outputs"), "stored without outputs"
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), f"{path.name}, cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}, cell {number}", "exec"), space)
        shown = eval(compile(ast.Expression(last.value), path.name, "eval"), space) if last else None
        if shown is not None:
            assert hasattr(shown, "_repr_png_"), f"cell {number} shows {shown!r}"
    said = capsys.readouterr().out
    if path.stem == "damage":
        same, different = map(float, re.findall(r"(?<=: )-?[\d.]+(?=;|$)", said.strip().splitlines()[-1]))
        assert same > different + 0.3
    else:
        assert said.count("fidelity") == 4
