"""The method as a figure: `python scripts/draw_method.py [FILE]` writes docs/images/method.svg.

Every box is a class of the code: its name is looked up there, and the first sentence of its docstring is the box's
tooltip, so the figure cannot name what is not there. Nothing of the package is imported.
"""

import ast
import sys
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BOX = (206, 58)  # pixels
# Column, row, module, class, words below the name.
BOXES = (
    (0, 1, "faces/detect.py", "Detector", "boxes, landmarks, identities"),
    (1, 0, "faces/matching.py", "ReferenceGallery", "whose face is whose"),
    (1, 1, "ref_fr/base.py", "RefFR", "Stage I: the face restored"),
    (2, 1, "models/fadex/encoder.py", "FaDeX", "face pair to map of the damage"),
    (3, 1, "models/mapnet.py", "MapNet", "1 + 4 + 16 tokens"),
    (3, 2, "models/restorer/one_step.py", "OneStepRestorer", "Stage II: one step of the UNet"),
)
# Data by column and row.
DATA = (
    (0, 0, "photo"),
    (2, 0, "photos of the person"),
    (4, 2, "restored photo"),
    (2, 2, "text prompt"),
)
# From box or data to another, with what flows.
ARROWS = (
    ("photo", "Detector", ""),
    ("photos of the person", "ReferenceGallery", ""),
    ("Detector", "RefFR", "face crop"),
    ("ReferenceGallery", "RefFR", "references"),
    ("RefFR", "FaDeX", "FacePair"),
    ("FaDeX", "MapNet", "256 channels"),
    ("MapNet", "OneStepRestorer", "DegradationTokens"),
    ("text prompt", "OneStepRestorer", "77 tokens"),
    ("OneStepRestorer", "restored photo", ""),
)
TYPES = "common/types.py"  # the arrows' capitalised words are its classes
STEP = (292, 118)
MARGIN = 24


def summary(module: str, name: str) -> str:
    """First sentence of a class's docstring.

    Raises:
        SystemExit: there is no such class.
    """
    tree = ast.parse((REPOSITORY / "face2scene" / module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n")[0].rstrip(".")
    raise SystemExit(f"face2scene/{module} has no class {name}: correct scripts/draw_method.py.")


def draw() -> str:
    """The figure as SVG text."""
    width, height = 5 * STEP[0] - (STEP[0] - BOX[0]) + 2 * MARGIN, 2 * STEP[1] + BOX[1] + 2 * MARGIN + 66
    places = {name: (column, row) for column, row, _, name, _ in BOXES}
    places |= {name: (column, row) for column, row, name in DATA}
    centre = {
        name: (MARGIN + column * STEP[0] + BOX[0] / 2, MARGIN + row * STEP[1] + BOX[1] / 2)
        for name, (column, row) in places.items()
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="sans-serif">',
        "<title>From the photo by the face to the restored photo</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#556"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for start, end, word in ARROWS:
        for part in word.split():
            if part[0].isupper():
                summary(TYPES, part)
        (x0, y0), (x1, y1) = centre[start], centre[end]
        if y0 == y1:
            x0, x1 = (x0 + BOX[0] / 2, x1 - BOX[0] / 2) if x0 < x1 else (x0 - BOX[0] / 2, x1 + BOX[0] / 2)
        else:
            y0, y1 = (y0 + BOX[1] / 2, y1 - BOX[1] / 2) if y0 < y1 else (y0 - BOX[1] / 2, y1 + BOX[1] / 2)
        lines.append(_arrow(x0, y0, x1, y1))
        side = 8 if y0 != y1 else 0
        at, anchor = ((x0 + x1) / 2 + side, (y0 + y1) / 2 - (8 if not side else -4)), "start" if side else "middle"
        lines.append(
            f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="12" fill="#445" text-anchor="{anchor}">{word}</text>'
        )
    # The scene itself goes past Stage I, straight to Stage II, below everything.
    x, y = centre["photo"]
    bottom = MARGIN + 2 * STEP[1] + BOX[1] + 40
    to = centre["OneStepRestorer"]
    lines.append(
        f'<path d="M{x - BOX[0] / 2 + 14:g} {y + BOX[1] / 2:g}V{bottom:g}H{to[0]:g}V{to[1] + BOX[1] / 2 + 2:g}" '
        'fill="none" stroke="#667" stroke-width="1.5" marker-end="url(#head)"/>'
        f'<text x="{x + BOX[0]:g}" y="{bottom - 8:g}" font-size="12" fill="#445">Scene: the whole photo</text>'
    )
    for _, _, module, name, words in BOXES:
        lines.append(_box(centre[name], name, words, summary(module, name), "#eef2fb", "#4666a8"))
    for _, _, name in DATA:
        lines.append(_box(centre[name], name, "", name, "#fff6e5", "#b98a2f"))
    return "\n".join([*lines, "</svg>", ""])


def _arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    return (
        f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" fill="none" stroke="#667" stroke-width="1.5" marker-end="url(#head)"/>'
    )


def _box(at: tuple[float, float], name: str, words: str, tip: str, fill: str, stroke: str) -> str:
    x, y = at[0] - BOX[0] / 2, at[1] - BOX[1] / 2
    up = 25 if words else 34
    lower = (
        f'<text x="{at[0]:g}" y="{y + 44:g}" font-size="11.5" text-anchor="middle" fill="#445">{escape(words)}</text>'
        if words
        else ""
    )
    return (
        f'<g><title>{escape(tip)}</title><rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="8" '
        f'fill="{fill}" stroke="{stroke}"/><text x="{at[0]:g}" y="{y + up:g}" font-size="16" text-anchor="middle" '
        f'fill="#1b2740">{escape(name)}</text>{lower}</g>'
    )


def main() -> None:
    """Write the figure to the file that is named, else to docs/images/method.svg."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs/images/method.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
