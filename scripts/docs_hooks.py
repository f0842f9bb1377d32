"""Hooks of mkdocs: pages that the navigation does not name come under "More"."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Add the pages of docs/ that mkdocs.yml leaves out."""
    named = str(config.nav)
    folder = Path(config.docs_dir)
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    if more := [name for name in left if f"'{name}'" not in named]:
        config.nav.append({"More": more})
    return config
