"""Completion with the tab key, without torch: `eval "$(face2scene completion bash)"`, or zsh; fish: `... | source`."""

import re
import shlex
from collections.abc import Iterable

from face2scene.assets import catalogue
from face2scene.cli.config_text import Key, keys, options_of
from face2scene.cli.options import COMMANDS, Parser, options

# Each asks this command for the candidates of the line up to the cursor; where there is none, files are completed.
SCRIPTS = {
    "bash": """\
_face2scene() {
  local line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
  COMPREPLY=($(face2scene completion bash "$line" 2>/dev/null))
  if [[ ${line##* } == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${COMPREPLY[@]##*=}"); fi
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _face2scene face2scene""",
    "zsh": """\
_face2scene() {
  local -a found=(${(f)"$(face2scene completion zsh "$LBUFFER" 2>/dev/null)"})
  if (( $#found )); then compadd -Q -S '' -- ${(M)found:#*=}; compadd -Q -- ${found:#*=}; else _files; fi
}
compdef _face2scene face2scene""",
    "fish": "complete -c face2scene -a '(face2scene completion fish (commandline -cp))'",
}


def candidates(line: str, parser: Parser) -> list[str]:
    """What the last word of a command line may become.

    Args:
        line: up to the cursor, with the program's name.
        parser: of `face2scene`, with its subcommands.
    """
    try:
        words = shlex.split(line)[1:] + [""] * line.endswith(" ")
    except ValueError:  # an open quote
        return []
    *before, current = words or [""]
    return sorted({word for word in _possible(before, current, parser) if word.startswith(current)})


def _possible(before: list[str], current: str, parser: Parser) -> Iterable[str]:
    if before and before[0] not in COMMANDS and (inner := parser.commands.get(before[0])):
        assets = [*catalogue.groups(), *catalogue.catalogue()] if before[0] == "fetch" else []
        return [*_possible(before[1:], current, inner), *assets]
    if not before or before[0] not in COMMANDS:
        return [word for action in parser._actions for word in (*action.option_strings, *(action.choices or ()))]
    name, forms = before[0], options(before[0])
    known = keys(name.replace("-", "_"), before)
    by_form = {form: key for key, flags in forms.items() for form in flags}
    if (key := by_form.get(before[-1])) and known[key].default is not False:
        return _values(key, known[key])
    if current.startswith("-"):
        return [*by_form, "--help", "--help-all", "--debug", "--multirun"]
    key, equals, _ = current.partition("=")
    if not equals:
        return [f"{key}=" for key in known if current]
    return [f"{key}={value}" for value in (_values(key, known[key]) if key in known else [])]


def _values(key: str, entry: Key) -> list[str]:
    named = re.match(r"\w+(?: \| \w+)+", entry.comment)
    return options_of(key) or (
        ["true", "false"] if isinstance(entry.default, bool) else named[0].split(" | ") if named else []
    )
