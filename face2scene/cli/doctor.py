"""face2scene doctor: what works on this machine, what is missing, and the command that gets it."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

from tqdm import tqdm

from face2scene import __version__
from face2scene.assets import catalogue
from face2scene.common.shipped import CHECKPOINTS

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


def main() -> int:
    """Print the state of this machine; exit code 1 where the tiny path does not work."""
    print(f"face2scene {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("\nVersions")
    for name in DISTRIBUTIONS:
        print(f"  {name:24}{_version(name)}")

    print("\nMachine")
    for line in _machine_lines():
        print(f"  {line}")

    modules = list(dict.fromkeys([*CORE, *(module for extra in EXTRAS.values() for module in extra)]))
    bar = tqdm(modules, desc="importing", leave=False, disable=not sys.stderr.isatty())
    failures = {module: reason for module in bar if (reason := _why_not_importable(module))}
    print("\nPackages")
    for extra, members in {"core": CORE, **EXTRAS}.items():
        missing = [f"{module}: {failures[module]}" for module in members if module in failures]
        command = "pip install face2scene" if extra == "core" else f"pip install 'face2scene[{extra}]'"
        print(f"  {extra:10}{'; '.join(missing) + '  -> ' + command if missing else 'works'}")

    print(f"\nWeights and photos in {catalogue.weights_root()}")
    for line in asset_lines():
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


def asset_lines() -> list[str]:
    """Every asset of the catalogue: whether it is here, its size and licence, and the command that gets it."""
    lines = []
    for asset in catalogue.catalogue().values():
        state = "ready  " if catalogue.is_ready(asset) else "missing"
        size = f"{asset.bytes_on_disk / 1e6:9.1f} MB" if asset.bytes_on_disk else "   unknown  "
        command = "" if state == "ready  " else f"  -> face2scene fetch {asset.name}"
        lines.append(f"{state} {asset.name:26}{size}  {asset.licence}{command}")
    return lines


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
