"""The command `face2scene`: fetch weights, see what works on this machine, restore photos, serve the web page.

Nothing heavy is imported before a subcommand needs it.
"""

import argparse
import json
import os
import re
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from face2scene import __version__
from face2scene.assets import catalogue
from face2scene.assets.download import fetch
from face2scene.cli import options
from face2scene.common.processes import end_with_launcher
from face2scene.eval.cost.cards import CARDS, EFFICIENCY, PROGRAMS

_EPILOG = """
example: face2scene restore party.jpg -o restored
An error is one sentence and exit code 1 or 2; --debug shows its traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    Raises:
        SystemExit: of argparse, and of a command of `cli.commands` that does not end well.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:2] == ["eval", "submit"] and len(argv) > 2:
        argv[1:3] = [f"submit={argv[2]}"]  # a word, since it is an action; among the options it is submit=FOLDER
    debug = "--debug" in argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    name = argv[0].replace("_", "-") if argv else ""
    try:
        if name in options.COMMANDS:
            options.read(name, argv[1:])  # help and misspelt options are answered before anything heavy is imported
            return _command(name, argv[1:])  # their key=value options are Hydra's, not argparse's
        argv, parser = [word for word in argv if word != "--debug"], _parser()
        if name == "rehearse":  # key=value options anywhere among the others
            arguments = parser.commands[name].parse_intermixed_args(argv[1:])
        else:
            arguments = parser.parse_args(argv)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("face2scene: stopped. Every file written is complete.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except options.UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        from face2scene.cli.command_line import is_user_error, print_error  # Hydra comes with it

        if debug or not is_user_error(error):
            raise
        return print_error(error)


def _parser() -> options.Parser:
    formatter: Any = partial(options.Help, max_help_position=26)
    parser = options.Parser(prog="face2scene", formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"face2scene {__version__}")
    strict: Any = partial(options.Parser, strict=True, formatter_class=formatter)
    about = "one of those below; each has --help"
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=strict, help=about
    )
    parser.commands = commands.choices
    listed: list[str] = []

    def command(name: str, about: str, example: str = "", **others: Any) -> options.Parser:
        listed.append(f"  {name:19}{about}")
        return commands.add_parser(name, description=f"{about}.", epilog=f"example: face2scene {example}", **others)

    # `main` runs these itself; here they are listed by --help
    for name, known in options.COMMANDS.items():
        command(name, re.split("[:;.]", known.about)[0])
    quickstart = command("quickstart", "The whole method at CPU scale, ending in a report", "quickstart")
    quickstart.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="for the first step, such as data.photos=FOLDER"
    )
    quickstart.set_defaults(run=lambda given: _command("quickstart", given.words))
    example, usage = "rehearse experiment=paper --card a6000 --gpus 4", "face2scene rehearse [options] [KEY=VALUE ...]"
    about = "Whether a run fits a machine and how long it takes"
    rehearsed, default = command("rehearse", about, example, usage=usage, strict=False), "(default: %(default)s)"
    add, share = rehearsed.add_argument, f"of the card's arithmetic {default}"
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as for the training scripts")
    add("--card", choices=CARDS, default="a6000", metavar="NAME", help=f"{', '.join(CARDS)} {default}")
    add("--gpus", type=int, default=4, metavar="N", help=f"cards of the machine {default}")
    add("--efficiency", type=float, default=EFFICIENCY, metavar="SHARE", help=share)
    parts = f"parts of the run: {', '.join(PROGRAMS)} (default: all)"
    add("--only", choices=PROGRAMS, nargs="+", default=PROGRAMS, metavar="PART", help=parts)
    add("--json", type=Path, metavar="PATH", help="write the figures here")
    rehearsed.set_defaults(run=_rehearse)

    fetcher = command("fetch", "Get third-party weights and photos by name, checked", "fetch yunet dlib")
    fetcher.add_argument("names", nargs="*", metavar="NAME", help="an asset or a group (quickstart, tests, open)")
    fetcher.add_argument("--all-open", action="store_true", help="every asset under a permissive licence")
    fetcher.add_argument("--list", action="store_true", help="show the catalogue and fetch nothing")
    fetcher.add_argument("--from", dest="given", metavar="FILE", help="take one asset from an archive, file or folder")
    fetcher.add_argument("--offline", action="store_true", help="use no network; fails for what is not here")
    fetcher.set_defaults(run=_fetch)

    doctor = command("doctor", "What works on this machine, and how to get the rest", "doctor")
    doctor.set_defaults(run=_doctor)

    example = "data verify data/quickstart"
    data = command("data", "Check a dataset, or put it into archives", example)
    actions = data.add_subparsers(title="actions", required=True, metavar="verify | pack")
    data.commands = actions.choices
    verify = actions.add_parser("verify", help="compare a dataset with its metadata; exit code 1 if anything is wrong")
    verify.add_argument("folder", metavar="FOLDER", type=_path)
    verify.set_defaults(run=_verify_data)
    packer = actions.add_parser("pack", help="copy a dataset with one split's images in tar archives")
    packer.add_argument("folder", metavar="FOLDER", type=_path)
    packer.add_argument("out", metavar="OUT", type=_path)
    packer.add_argument("--split", default="train", help="whose images (default: %(default)s)", metavar="NAME")
    packer.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images per archive (default: 1000)")
    packer.set_defaults(run=_pack_data)

    example = "explain restored/images/party.png"
    explainer = command("explain", "Where an output comes from: weights, commit, settings", example)
    explained = "an image, scores.json, a weights file, a report, or a folder of a run"
    explainer.add_argument("file", metavar="FILE", type=_path, help=explained)
    explainer.set_defaults(run=_explain)

    tab = 'eval "$(face2scene completion bash)"'
    completer = command("completion", f"Tab completion: {tab}", "completion fish | source")
    completer.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    completer.add_argument("line", nargs="?", metavar="LINE", help="print what the last word of this line may become")
    completer.set_defaults(run=_complete)
    parser.epilog = "\n".join([*listed, _EPILOG])
    return parser


def _path(text: str) -> str:
    if not text:  # it would be the current folder
        raise argparse.ArgumentTypeError("a path is needed, and an empty text was given")
    return text


def _complete(arguments: argparse.Namespace) -> int:
    from face2scene.cli import completion

    if arguments.line is None:
        print(completion.SCRIPTS[arguments.shell])
    else:
        print("\n".join(completion.candidates(arguments.line, _parser())))
    return 0


def _rehearse(arguments: argparse.Namespace) -> int:
    from face2scene.cli import rehearse

    return rehearse.main(arguments)


def _fetch(arguments: argparse.Namespace) -> int:
    if arguments.list:
        from face2scene.cli.doctor import asset_lines

        print("\n".join(asset_lines()))
        for group, members in catalogue.groups().items():
            print(f"group {group}: {' '.join(members)}")
        return 0
    names = [*arguments.names, *(["open"] if arguments.all_open else [])]
    if not names:
        print("face2scene fetch: name an asset or a group, or use --all-open or --list.", file=sys.stderr)
        return 2
    fetch(names, offline=True if arguments.offline else None, given=arguments.given)
    wanted = catalogue.resolve(names)
    print(f"Ready in {catalogue.weights_root()}: {', '.join(wanted)}.")
    return 0


def _verify_data(arguments: argparse.Namespace) -> int:
    from face2scene.data.verify import verify

    found = 0
    for problem in verify(arguments.folder):
        found += 1
        print(problem)
    print(f"{arguments.folder}: {found} problems." if found else f"{arguments.folder} is sound.")
    return 1 if found else 0


def _pack_data(arguments: argparse.Namespace) -> int:
    from face2scene.data.shards import pack

    count = pack(arguments.folder, arguments.out, split=arguments.split, per_shard=arguments.per_shard)
    print(f"{arguments.out}: {count} archives.")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from face2scene.cli.explain import explain

    print(json.dumps(explain(arguments.file), indent=2, ensure_ascii=False))
    return 0


def _command(name: str, overrides: Sequence[str]) -> int:
    end_with_launcher()  # before the imports, which take seconds
    sys.argv = [f"face2scene {name}", *overrides]
    # as a program of its own, so that processes that it spawns (workers of a data loader) find its module
    runpy.run_module(f"face2scene.cli.commands.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from face2scene.cli import doctor

    return doctor.main()
