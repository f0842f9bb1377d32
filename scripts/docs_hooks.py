"""Hooks of mkdocs: a page of all code blocks and how they are tried, pages that the navigation does not name, and links
to files of the repository that are not in the site, which become text.
"""

import os.path
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parents[1]
CODE_BLOCKS = "code_blocks.md"
_HEAD = """# Code blocks, tried

Every block of the README and of these pages, and what `tests/docs` does with it.

"""


def on_config(config: Any) -> Any:
    """Add the pages of docs/ that mkdocs.yml leaves out, under "More"."""
    named = str(config.nav)
    folder = Path(config.docs_dir)
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    config.nav.append({"More": [*(name for name in left if f"'{name}'" not in named), CODE_BLOCKS]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the page of code blocks."""
    sys.path.insert(0, str(REPOSITORY / "tests/support"))
    from doc_blocks import table

    files.append(File.generated(config, CODE_BLOCKS, content=_HEAD + table()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take links that lead out of docs/ off their words."""
    folder = os.path.dirname(page.file.src_uri)

    def kept(found: re.Match[str]) -> str:
        outside = os.path.normpath(os.path.join(folder, found[2])).startswith("..")
        return f"`{found[1]}`" if outside else found[0]

    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)", kept, markdown)
