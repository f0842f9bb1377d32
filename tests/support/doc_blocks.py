"""Code blocks of README and docs/: what stands in them, and how each is tried. Needs the standard library alone.

    python tests/support/doc_blocks.py      a table of all blocks, one line each

A block of Python is executed. A line of bash is a command of one of the `TREATMENTS`; a block of another language is
parsed, and `text` is shown as it is. A block without a language has no treatment.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "integrations/comfyui/README.md", "app/README.md", "docs/**/*.md")
LANGUAGES = {"python": "executed", "json": "parsed", "yaml": "parsed", "text": "shown"}
# Commands that are started; they take seconds, need no weights of others, and write below the folder they start in.
EXECUTED = (
    "face2scene fetch --list",
    "face2scene doctor",
    "face2scene restore party.jpg -o restored_in_tiles pipeline.tile=256",
    "python scripts/sweep.py sweep=p_n experiment=quickstart --dry-run",
)
TREATMENTS = {
    "executed": "started, and has to end well",
    "composed": "its configuration is composed with the options as they stand, but nothing is started",
    "checked": "program, options and files are looked up, but nothing is started",
    "parsed": "read by its parser",
    "shown": "text, not code",
}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str  # path in the repository
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A simple command of a block of bash, its variables replaced."""

    words: tuple[str, ...]
    text: str = field(compare=False)

    @property
    def treatment(self) -> str:
        """A key of `TREATMENTS`."""
        if " ".join(self.words) in EXECUTED:
            return "executed"
        return "composed" if self.script else "checked"

    @property
    def script(self) -> str:
        """Name of the script in scripts/ that Hydra configures; empty if it is another program."""
        words = list(self.words)
        if words[:2] == ["accelerate", "launch"]:
            return next((Path(word).stem for word in words if word.startswith("scripts/")), "")
        if words[:1] == ["python"] and words[1:2] and words[1].startswith("scripts/"):
            name = Path(words[1]).stem
        else:
            name = words[1].replace("-", "_") if words[:1] == ["face2scene"] and len(words) > 1 else ""
        return name if (REPOSITORY / f"configs/{name}.yaml").is_file() else ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words after the script's name."""
        at = next((n for n, word in enumerate(self.words) if word.startswith("scripts/")), 1)
        return self.words[at + 1 :]


def pages() -> list[Path]:
    return sorted({path for pattern in PAGES for path in REPOSITORY.glob(pattern)})


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(REPOSITORY).as_posix()
    return [
        Block(name, text.count("\n", 0, m.start()) + 1, m["language"], _dedented(m["text"], len(m["indent"])))
        for m in _FENCE.finditer(text)
    ]


def _dedented(text: str, indent: int) -> str:
    return "".join(line[indent:] if line.strip() else line for line in text.splitlines(keepends=True))


def commands(block: Block, known: dict[str, str] | None = None) -> Iterator[Command]:
    """The commands of a block of bash; loops are walked once, with their first value.

    Args:
        known: variables of earlier blocks of the page; it is updated.
    """
    known = {} if known is None else known
    for line in block.text.replace("\\\n", " ").splitlines():
        for words in _simple(_VARIABLE.sub(lambda m: known.get(m[1], m[0]), line)):
            while words and (given := re.fullmatch(r"(\w+)=(.*)", words[0], re.S)):
                if len(words) == 1:
                    known[given[1]] = given[2]
                words = words[1:]
            if words[:1] == ["for"]:
                known[words[1]] = words[3]
                words = []
            words = words[1:] if words[:1] == ["do"] else words
            if words and words != ["done"]:
                replaced = [_VARIABLE.sub(lambda m: known.get(m[1], m[0]), word) for word in words]
                yield Command(tuple(replaced), line.strip())


def _simple(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, "#"
    parts: list[list[str]] = [[]]
    for word in lexer:
        parts.append([]) if set(word) <= set(";&|") else parts[-1].append(word)
    return [part for part in parts if part]


def treatments(block: Block, known: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """(treatment, what) of a block; empty if it has none."""
    if block.language in ("bash", "sh"):
        return [(one.treatment, " ".join(one.words)) for one in commands(block, known)]
    if block.language not in LANGUAGES:
        return []
    lines = block.text.count("\n")
    return [(LANGUAGES[block.language], f"{block.language}, {lines} lines")]


def table() -> str:
    """All blocks as Markdown."""
    rows, counts = [], dict.fromkeys(TREATMENTS, 0)
    for path in pages():
        known: dict[str, str] = {}
        for block in blocks(path):
            for treatment, what in treatments(block, known):
                counts[treatment] += 1
                shown = what if len(what) < 90 else what[:87] + "..."
                rows.append(f"| {block.where} | {treatment} | `{shown.replace('|', ' ')}` |")
    lines = [f"- {counts[name]} {name}: {about}" for name, about in TREATMENTS.items()]
    return "\n".join([*lines, "", "| where | | what |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(table())
