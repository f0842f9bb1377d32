"""The command `face2scene`: fetch weights, see what works on this machine, restore photos, serve the web page.

Nothing heavy is imported before a subcommand needs it.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import runpy
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from face2scene import __version__
from face2scene.assets import catalogue
from face2scene.assets.download import fetch
from face2scene.cli import options
from face2scene.common.shipped import CHECKPOINTS
from face2scene.eval.cost.cards import CARDS, EFFICIENCY, PROGRAMS

# by import name; pyproject.toml has the distributions
CORE = (
    *("torch", "torchvision", "numpy", "PIL", "safetensors", "hydra", "omegaconf", "accelerate", "diffusers"),
    *("transformers", "peft", "pyarrow", "tqdm", "lpips", "scipy", "yaml", "huggingface_hub", "jinja2"),
    *("filelock", "platformdirs", "psutil"),
)
EXTRAS = {
    "faces": ("cv2", "dlib", "onnxruntime", "facexlib", "insightface"),
    "degrade": ("basicsr", "cv2"),
    "metrics": ("pyiqa",),
    "raw": ("rawpy", "exifread"),
    "data": ("datasets",),
    "log": ("wandb", "tensorboard"),
    "facegen": ("openvino",),
    "app": ("gradio",),
    "export": ("onnxscript", "onnxruntime"),
    "report": ("matplotlib",),
    "slurm": ("submitit",),
}
TINY_NEEDS = ("cv2", "dlib", "openvino", "pyiqa", "matplotlib")
DISTRIBUTIONS = (  # noqa: SIM905
    "torch torchvision diffusers transformers peft accelerate hydra-core omegaconf numpy opencv-python-headless "
    "opencv-python basicsr facexlib insightface pyiqa rawpy wandb openvino dlib-bin"
).split()
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
        print("face2scene: stopped; nothing incomplete has a final name.", file=sys.stderr)
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
    verify.add_argument("folder", metavar="FOLDER")
    verify.set_defaults(run=_verify_data)
    packer = actions.add_parser("pack", help="copy a dataset with one split's images in tar archives")
    packer.add_argument("folder", metavar="FOLDER")
    packer.add_argument("out", metavar="OUT")
    packer.add_argument("--split", default="train", help="whose images (default: %(default)s)", metavar="NAME")
    packer.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images per archive (default: 1000)")
    packer.set_defaults(run=_pack_data)

    example = "explain restored/images/party.png"
    explainer = command("explain", "Where an output comes from: weights, commit, settings", example)
    explained = "an image, scores.json, a weights file, a report, or a folder of a run"
    explainer.add_argument("file", metavar="FILE", help=explained)
    explainer.set_defaults(run=_explain)

    tab = 'eval "$(face2scene completion bash)"'
    completer = command("completion", f"Tab completion: {tab}", "completion fish | source")
    completer.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    completer.add_argument("line", nargs="?", metavar="LINE", help="print what the last word of this line may become")
    completer.set_defaults(run=_complete)
    parser.epilog = "\n".join([*listed, _EPILOG])
    return parser


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
        for line in _asset_lines():
            print(line)
        for group, members in catalogue.groups().items():
            print(f"group {group}: {' '.join(members)}")
        return 0
    names = [*arguments.names, *(["open"] if arguments.all_open else [])]
    if not names:
        print("face2scene fetch: name an asset or a group, or use --all-open or --list.", file=sys.stderr)
        return 2
    fetch(names, offline=True if arguments.offline else None, given=arguments.given)
    wanted = catalogue.resolve(names)
    print(f"{len(wanted)} assets are ready in {catalogue.weights_root()}.")
    return 0


def _asset_lines() -> list[str]:
    lines = []
    for asset in catalogue.catalogue().values():
        state = "ready  " if catalogue.is_ready(asset) else "missing"
        size = f"{asset.bytes_on_disk / 1e6:9.1f} MB" if asset.bytes_on_disk else "   unknown  "
        command = "" if state == "ready  " else f"  -> face2scene fetch {asset.name}"
        lines.append(f"{state} {asset.name:26}{size}  {asset.licence}{command}")
    return lines


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
    sys.argv = [f"face2scene {name}", *overrides]
    # as a program of its own, so that processes that it spawns (workers of a data loader) find its module
    runpy.run_module(f"face2scene.cli.commands.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)
    return 0


def _doctor(_: argparse.Namespace) -> int:
    print(f"face2scene {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("\nVersions")
    for name in DISTRIBUTIONS:
        print(f"  {name:24}{_version(name)}")

    print("\nMachine")
    for line in _machine_lines():
        print(f"  {line}")

    from tqdm import tqdm

    modules = list(dict.fromkeys([*CORE, *(module for extra in EXTRAS.values() for module in extra)]))
    bar = tqdm(modules, desc="importing", leave=False, disable=not sys.stderr.isatty())
    failures = {module: reason for module in bar if (reason := _why_not_importable(module))}
    print("\nPackages")
    for extra, members in {"core": CORE, **EXTRAS}.items():
        missing = [f"{module}: {failures[module]}" for module in members if module in failures]
        command = "pip install face2scene" if extra == "core" else f"pip install 'face2scene[{extra}]'"
        print(f"  {extra:10}{'; '.join(missing) + '  -> ' + command if missing else 'works'}")

    print(f"\nWeights and photos in {catalogue.weights_root()}")
    for line in _asset_lines():
        print(f"  {line}")

    print("\nLicences of the assets on this machine")
    by_licence: dict[str, list[str]] = {}
    for asset in filter(catalogue.is_ready, catalogue.catalogue().values()):
        by_licence.setdefault(asset.licence, []).append(asset.name)
    for licence, names in by_licence.items() or [("none", [])]:
        print(f"  {licence}{': ' * bool(names)}{', '.join(names)}")

    obstacles = _tiny_obstacles(failures)
    print()
    for obstacle in obstacles:
        print(f"Missing for the tiny path: {obstacle}")
    print("The tiny path (make demo) works here." if not obstacles else "The tiny path (make demo) does not work yet.")
    return 1 if obstacles else 0


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _why_not_importable(module: str) -> str:
    """The reason why importing a module fails, else an empty string."""
    if module == "basicsr":  # its import fails with a current torchvision, and only its files are used
        return "" if importlib.util.find_spec(module) else "not installed"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if (error.name or "") in module else f"needs {error.name}"
    except Exception as error:  # a third-party package may raise anything on import
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _machine_lines() -> list[str]:
    lines = []
    try:
        import torch

        from face2scene.common.memory import best_device, free_memory
    except ImportError:
        lines.append("device: unknown, torch is not installed")
    else:
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            lines.append(f"device: cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
        if best_device().type == "mps":
            lines.append("device: mps, the GPU of this Apple computer")
        lines = lines or [f"device: cpu, {torch.get_num_threads()} threads of torch"]
        lines.append(f"free memory: {free_memory() / 2**30:.1f} GiB")
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux alone
    lines.append(f"cores: {len(allowed(0)) if allowed else os.cpu_count()}")
    place = next(p for p in (catalogue.weights_root(), *catalogue.weights_root().parents) if p.exists())
    lines.append(f"free disk: {shutil.disk_usage(place).free / 2**30:.1f} GiB at {place}")
    return lines


def _tiny_obstacles(failures: dict[str, str]) -> list[str]:
    obstacles = [f"{module} ({failures[module]}): pip install face2scene" for module in CORE if module in failures]
    extra = "pip install 'face2scene[quickstart]'"
    obstacles += [f"{module} ({failures[module]}): {extra}" for module in TINY_NEEDS if module in failures]
    if not any((tiny := CHECKPOINTS / "tiny").rglob("*.safetensors")):
        obstacles.append(f"the tiny base in {tiny}: part of the repository; scripts/train_tiny_base.py trains it")
    obstacles += [
        f"{asset.purpose} `face2scene fetch {name}`"
        for name in catalogue.groups()["quickstart"]
        if not catalogue.is_ready(asset := catalogue.catalogue()[name])
    ]
    return obstacles
