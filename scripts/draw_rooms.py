"""Draw which part of the package imports which: `python scripts/draw_rooms.py [FILE]`, docs/rooms.svg if none is given.

Each folder of face2scene/ is one box. A box stands one row below the lowest box that it imports, so that every arrow
points up. Arrows that a longer path implies are left out (transitive reduction).
"""

import ast
import sys
from pathlib import Path

from markupsafe import escape

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "face2scene"
BOX, ROW, MARGIN = (176, 44), 76, 20  # pixels


def imports() -> dict[str, set[str]]:
    """Folder to the folders that its modules import."""
    found: dict[str, set[str]] = {p.name: set() for p in sorted(PACKAGE.iterdir()) if (p / "__init__.py").is_file()}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("face2scene.") and room in found:
                found[room].add(node.module.split(".")[1])
    return {room: needed - {room} for room, needed in found.items()}


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rows from the top, which imports nothing, down; each folder one row below the lowest that it imports."""
    level: dict[str, int] = {}
    while len(level) < len(graph):
        ready = [room for room in graph if room not in level and graph[room] <= level.keys()]
        if not ready:
            raise SystemExit(f"These import each other in a circle: {', '.join(sorted(graph.keys() - level.keys()))}.")
        level |= {room: max((level[other] + 1 for other in graph[room]), default=0) for room in ready}
    return [sorted(room for room in graph if level[room] == row) for row in range(max(level.values()) + 1)]


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a path over another folder implies."""

    def reached(room: str) -> set[str]:
        return graph[room].union(*(reached(other) for other in graph[room]))

    return {room: needed.difference(*(reached(other) for other in needed)) for room, needed in graph.items()}


def summary(room: str) -> str:
    """First words of the folder's docstring, up to a colon."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def draw(graph: dict[str, set[str]]) -> str:
    """The picture as SVG text."""
    rows = floors(graph)
    width = max(len(row) for row in rows) * (BOX[0] + 40) + 2 * MARGIN
    height = (len(rows) - 1) * ROW + BOX[1] + 2 * MARGIN
    at = {
        room: (width / 2 + (number - (len(row) - 1) / 2) * (BOX[0] + 40), MARGIN + line * ROW)
        for line, row in enumerate(rows)
        for number, room in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="sans-serif">',
        "<title>Folders of face2scene and their imports</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for room, needed in sorted(reduced(graph).items()):
        for other in sorted(needed):
            (x0, y0), (x1, y1) = at[room], at[other]
            y1 += BOX[1]
            middle = (y0 + y1) / 2
            lines.append(
                f'<path d="M{x0:g} {y0:g}C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1 + 2:g}" fill="none" '
                'stroke="#889" stroke-width="1.4" marker-end="url(#head)"/>'
            )
    for room, (x, y) in at.items():
        lines.append(
            f'<g><title>{escape(summary(room))}</title><rect x="{x - BOX[0] / 2:g}" y="{y:g}" width="{BOX[0]}" '
            f'height="{BOX[1]}" rx="8" fill="#eef2fb" stroke="#4666a8"/><text x="{x:g}" y="{y + 27:g}" '
            f'font-size="16" text-anchor="middle" fill="#1b2740">{escape(room)}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Write the picture to the file that is named, else to docs/rooms.svg."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs" / "rooms.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(draw(imports()), encoding="utf-8")


if __name__ == "__main__":
    main()
