"""The names that the code allows for its options, read from its calls of `one_of`."""

import ast
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import face2scene

PACKAGE = Path(face2scene.__file__).parent


def code_choices() -> dict[str, list[set[str]]]:
    """Option -> the names of each call of `one_of` about it."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        if "import one_of" not in (text := path.read_text(encoding="utf-8")):
            continue
        place = path.relative_to(PACKAGE.parent).with_suffix("")
        names = vars(import_module(".".join(place.parts).removesuffix(".__init__")))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "one_of":
                option = ast.literal_eval(node.args[0])
                known = eval(compile(ast.Expression(node.args[2]), str(path), "eval"), names)
                found[option].append({*known})
    return found
