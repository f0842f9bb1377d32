"""The options of every command that Hydra configures: one screen of help, and the words that are passed to Hydra.

    face2scene restore party.jpg -r photos/ann -o restored --scale 2 pipeline.tile=auto

An option is a key of the configuration with its last part as its name, `--fidelity 0.8` for `pipeline.fidelity=0.8`;
defaults and descriptions are those of the files in configs/.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from face2scene.cli.config_text import CONFIGS, Key, keys, layers, options_of, variants
from face2scene.cli.value_rules import choices, did_you_mean, nearest, parsed, problem

# Keys whose value is a path and is not parsed by Hydra's grammar.
PATHS = frozenset(
    {"input", "output", "references", "gt", "predictions", "boxes", "dataset", "import_only", "scratch", "cache"}
    | {"restorer_weights", "fadex_weights", "estimator_weights", "base", "shipped", "init_from", "text"}
    | {"images.faces.folder", "restorer.base.source", "probe.weights", "probe.lq_only", "probe.data"}
    | {"data.raws", "data.gallery", "data.celebref", "data.source", "data.table"}
    | {"ref_fr.base", "ref_fr.mix", "ref_fr.photomaker", "ref_fr.antelope", "ref_fr.weights_file"}
    | {"paths.data", "paths.runs", "paths.shipped", "data.root", "data.photos", "data.collection", "probe.photos"}
    | {"use.fadex", "use.restorer", "use.s3diff", "readout.fadex", "readout.heads", "ref_fr.folder"}
    | {"baseline.checkout", "baseline.python", "restorer.decoder", "submit", "board", "wandb"}
)
NAMES = (
    *("restore", "app", "eval", "build-inscene", "train-fadex", "train-restorer", "precompute-ref-fr", "run-baseline"),
    *("sweep", "redegrade", "calibrate-faces", "export", "train-tiny-base"),
)


class Command(NamedTuple):
    """What the help of a command says: the head of its configuration's file."""

    about: str
    example: str
    options: str  # keys; `i:input` has the short option -i besides, and ! marks the key of words without =


def _command(name: str) -> Command:
    text = (CONFIGS / f"{name.replace('-', '_')}.yaml").read_text(encoding="utf-8")
    head = re.match(r"# (.+)\n# Example: (.+)\n# Options: ((?:.+\n#   )*.+)\n", text)
    if head is None:
        raise ValueError(f"The head of the configuration of {name} is not that of a command: about, Example, Options.")
    return Command(head[1], head[2], head[3].replace("\n#  ", ""))


COMMANDS = {name: _command(name) for name in NAMES}
# Hydra's own options, with a value and without.
_HYDRA = {"--cfg": "-c", "--config-dir": "-cd", "--config-name": "-cn", "--config-path": "-cp", "--package": "-p"}
_HYDRA_FLAGS = {"--multirun": "-m", "--resolve": "-resolve", "--hydra-help": "-hydra-help"}
_OVERRIDE = re.compile(r"[+~]{0,2}(?P<key>[\w.@:/-]+)=(?P<value>.*)|~[\w.@:/-]+", re.DOTALL)
_MORE = (
    "Every key of the configuration can be given as KEY=VALUE; --help-all prints them with their comments. "
    "-m runs all combinations of lists such as seed=1,2; --debug shows an error's traceback."
)


class UsageError(ValueError):
    """A command line that means nothing; the message has the nearest that does. Exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, of a misspelt option before anything else, with the nearest real one.

    Args:
        strict: of a subcommand, whose unknown words would be reported as those of the whole command.
        keys: of a configuration, which can be given as KEY=VALUE.
    """

    def __init__(self, *arguments: Any, strict: bool = False, keys: Collection[str] = (), **options: Any):
        super().__init__(*arguments, allow_abbrev=False, **options)
        self.strict, self.keys = strict, keys
        self.commands: Mapping[str, Parser] = {}  # its subcommands
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        found = super().parse_known_args(args, namespace)
        return self.refuse(found[1][0]) if self.strict and found[1] else found

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        for word in takewhile(lambda word: word != "--", self._given):
            if re.match(r"--?[^\W\d]", word) and not {word.partition("=")[0], word[:2]} & {*known}:
                self.refuse(word)
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            self.refuse(choice[1], re.findall(r"[^\s',]+", choice[2]))
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help.")

    def refuse(self, word: str, known: Iterable[str] = ()) -> NoReturn:
        """Raise the UsageError of a word that is none of `known`, by default of what this parser takes."""
        word, known = word.partition("=")[0], list(known)
        forms = {name: name for name in known}
        for action in () if forms else self._actions:
            forms |= {name: name for name in action.option_strings or action.choices or ()}
            if not action.option_strings and action.metavar:
                forms[f"--{action.dest}"] = str(action.metavar)  # such as --file for FILE
        near, key = forms.get(nearest(word, forms), ""), word.lstrip("-").replace("-", "_")
        if (found := nearest_key(key, self.keys)) and (not near or found.rpartition(".")[2] == key):
            near = f"{found}=VALUE"
        listed = f"choose {', '.join(known)}" if known and not near else f"see {self.prog} --help"
        raise UsageError(f"{self.prog} has no {word}{did_you_mean(near)}: {listed}.")


class Help(argparse.RawDescriptionHelpFormatter):
    """One form of each option, with its value once; no line wider than the window."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return f"{', '.join(action.option_strings)} {action.metavar or ''}".strip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kept = partial(textwrap.fill, width=width, break_on_hyphens=False, break_long_words=False)
        columns = (re.match(r"( *\S+ {2,})?", line) for line in text.splitlines())  # a list goes on below its own text
        return "\n".join(kept(one.string, subsequent_indent=" " * one.end()) for one in columns if one)


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The key that was meant, also where its first parts are missing; empty if there is none."""
    known = list(known)
    parts = {name.rpartition(".")[2]: name for name in reversed(known)}
    return nearest(key, known, 0.75) or parts.get(nearest(key.rpartition(".")[2], parts, 0.75), "")


def options(name: str) -> dict[str, list[str]]:
    """The keys among a command's options, each with its forms on the command line, the long one last."""
    parts = [word.lstrip("!").rpartition(":") for word in COMMANDS[name].options.split()]
    return {
        key: [f"-{short}"] * bool(short) + ["--" + key.rpartition(".")[2].replace("_", "-")] for short, _, key in parts
    }


def parser_of(name: str) -> Parser:
    """The parser of a command, which also makes its help."""
    command, known, forms = COMMANDS[name], keys(name.replace("-", "_")), options(name)
    words = _key_of_words(name)
    required = [f"{forms[key][0]} {_metavar(key)}" for key in forms if known[key].default == "???" and key != words]
    positional = [] if words is None else ["PHOTO ..." if words == "input" else "FOLDER"]
    parser = Parser(
        prog=f"face2scene {name}",
        usage=" ".join([f"face2scene {name}", *positional, *required, "[options] [KEY=VALUE ...]"]),
        description=command.about,
        epilog=f"example: {command.example}\n\n{_MORE}",
        formatter_class=partial(Help, max_help_position=27),
        add_help=False,
        keys=known,
    )
    group, hidden = parser.add_argument_group("options"), partial(parser.add_argument, help=argparse.SUPPRESS)
    for key, flags in forms.items():
        takes: dict[str, Any] = {"metavar": _metavar(key)}
        if known[key].default is False:
            takes = {"action": "store_const", "const": "true"}
        elif key == words:
            takes["action"] = "append"
        group.add_argument(*flags, dest=key, help=_about(key, known[key], known), **takes)
    for flags in (["--help", "-h"], ["--help-all"], ["--debug"], *_HYDRA_FLAGS.items()):
        hidden(*flags, action="store_true")
    for flags in _HYDRA.items():
        hidden(*flags, choices=("job", "hydra", "all") if "-c" in flags else None)
    hidden("words", nargs="*")
    return parser


def _key_of_words(name: str) -> str | None:
    return next((w[1:].rpartition(":")[2] for w in COMMANDS[name].options.split() if w.startswith("!")), None)


def _metavar(key: str) -> str:
    return "NAME" if options_of(key) else "PATH" if key in PATHS else "VALUE"


def _about(key: str, known: Key, paths: Mapping[str, Key]) -> str:
    text = ", ".join(options_of(key)) or re.split(r"(?<=\w{3})[;.] ", known.comment)[0]
    default = re.sub(r"\$\{(paths\.\w+)\}", lambda found: str(paths[found[1]].default), str(known.default))
    default = re.sub(r"\$\{oc\.env:\w+,(\w+)\}", r"\1", default.replace("${shipped:}", "checkpoints"))
    default = re.sub(r"\$\{[\w.]*?(\w+)\}", r"<\1>", default)  # such as <name>
    without = known.default in (None, "null", "", "???") or known.default is False
    return f"{text}{'' if without else f' (default: {default})'}".strip().replace("%", "%%")


class Words(NamedTuple):
    """A command line in Hydra's words."""

    hydra: list[str]  # its own options
    overrides: list[str]
    photos: list[str]  # several values of `input`
    debug: bool


def read(name: str, argv: Sequence[str]) -> Words:
    """The words for Hydra of a command line as people type it; prints help where it is asked for, and exits.

    What follows `--` is no option, and what begins like a path (`./`, `/`, `..`) is no KEY=VALUE.

    Raises:
        UsageError: an option, a word or a value that cannot be meant; the message has the nearest that can.
    """
    parser, end = parser_of(name), [*argv, "--"].index("--")
    given, unknown = parser.parse_known_intermixed_args(with_variant(name, argv[:end]))
    if given.help or given.help_all:
        print(parser.format_help() if given.help else _all_files(name, given.words), end="")
        raise SystemExit(0)
    if unknown:
        parser.refuse(unknown[0])
    typed = [word for word in given.words if not word.startswith((".", "/"))]
    known, words = keys(name.replace("-", "_"), typed), _key_of_words(name)
    overrides = [word for word in typed if _is_override(word, known)]
    plain = [word for word in given.words if word not in overrides] + list(argv[end + 1 :])
    for key in options(name):
        value = getattr(given, key)
        if key == words:
            plain = [*(value or []), *plain]
        elif value is not None:
            listed = isinstance(known[key].default, list) and not value.startswith("[")
            overrides.append(f"{key}=[{value}]" if listed else f"{key}={value}")
    if plain and (words is None or (words != "input" and len(plain) > 1)):
        raise UsageError(f"{plain[-1]!r} is no option of face2scene {name}: give KEY=VALUE, or see --help.")
    if plain and any(word.startswith(f"{words}=") for word in overrides):
        raise UsageError(f"{plain[0]!r} and {words}=... are both given: name what to take once.")
    if len(plain) == 1:
        overrides.append(f"{words}={plain.pop()}")
    for word in (*overrides, *(f"{words}={one}" for one in plain)):
        _check_value(word, known)
    of = {flag: getattr(given, flag.strip("-").replace("-", "_")) for flag in (*_HYDRA_FLAGS, *_HYDRA)}
    hydra = [word for flag, value in of.items() if value for word in ([flag] if value is True else [flag, value])]
    return Words(hydra, overrides, plain, given.debug)


def with_variant(name: str, words: Sequence[str]) -> list[str]:
    """The words of a training with `variant=SWEEP/LABEL` replaced by that variant's overrides and a name of its own.

    Raises:
        UsageError: no such variant, or one that does not differ in this training.
    """
    word = next((word for word in words if word.startswith("variant=")), None)
    if word is None or not name.startswith("train-"):
        return list(words)
    key, _, label = word.removeprefix("variant=").partition("/")
    kind = name.removeprefix("train-")
    known = variants(key) if key in options_of("sweep") else {}
    if not (own := (known.get(label) or {}).get(kind)):
        labels = [f"{key}/{label}" for label, row in known.items() if kind in (row or {})]
        raise UsageError(f"{word} is no variant that trains a {kind}: choose {', '.join(labels) or 'another sweep'}.")
    folder = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    named = [] if any(other.startswith("name=") for other in words) else [f"name=sweep/{key}/{folder}/{kind}"]
    return [*(other for other in words if other != word), *own, *named]


def _is_override(word: str, known: Mapping[str, Key]) -> bool:
    match = _OVERRIDE.fullmatch(word)
    if match is None or (match["key"] or "").partition(".")[0] in {key.partition(".")[0] for key in known}:
        return match is not None
    return not Path(word).exists()  # a photo may be called a=b.png


def _check_value(word: str, known: Mapping[str, Key]) -> None:
    match = _OVERRIDE.fullmatch(word)
    entry = known.get(match["key"] or "") if match else None
    if match is not None and entry is not None and match["value"] == "" != entry.default:
        raise UsageError(f"{match['key']} is given without a value: give one, or null where there is none.")
    if match is None or entry is None or re.search(r"[\[{($]", match["value"]):
        return  # the composed value is checked
    if match["key"] in PATHS and not choices(entry.comment):
        return
    for text in [match["value"]] if isinstance(entry.default, list) else match["value"].split(","):
        if sentence := problem(match["key"], parsed(text.strip()), entry):
            raise UsageError(sentence)


def _all_files(name: str, words: Sequence[str]) -> str:
    files = [path for _, path in layers(name.replace("-", "_"), words)]
    return "\n".join(f"# {'/'.join(path.parts[-2:])}\n{path.read_text(encoding='utf-8')}" for path in reversed(files))
