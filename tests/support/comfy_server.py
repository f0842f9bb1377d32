"""A stub of ComfyUI's server: it loads a node package as ComfyUI does, checks a workflow, and executes it."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

WIDGETS = {"STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool}


def load_nodes(folder: Path) -> dict[str, type]:
    """NODE_CLASS_MAPPINGS of a folder of custom_nodes; its display names must be those of its nodes."""
    name = f"custom_nodes_{folder.name}"
    found = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) <= set(module.NODE_CLASS_MAPPINGS)
    return module.NODE_CLASS_MAPPINGS


class LoadImage:
    """As ComfyUI's: (1, H, W, 3) floats in [0, 1]. The images stand in `files` by name."""

    files: dict[str, Any] = {}  # noqa: RUF012
    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (sorted(cls.files), {})}}

    def load_image(self, image: str) -> tuple:
        return self.files[image], None


class SaveImage:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "save_images", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save_images(self, images: Any, filename_prefix: str) -> dict[str, Any]:
        assert images.ndim == 4 and images.shape[-1] == 3, images.shape
        assert images.min() >= 0 and images.max() <= 1
        return {"ui": {"images": images}}


def problems(workflow: dict[str, Any], nodes: dict[str, type]) -> list[str]:
    """What ComfyUI's validation would refuse in a workflow of the API format."""
    found = []
    for number, node in workflow.items():
        cls = nodes[node["class_type"]]
        kinds = cls.INPUT_TYPES()
        declared = kinds["required"] | kinds.get("optional", {})
        found += [f"{number}: {name} is missing" for name in kinds["required"] if name not in node["inputs"]]
        for name, value in node["inputs"].items():
            if name not in declared:
                found.append(f"{number}: {name} is no input")
                continue
            kind, options = declared[name][0], (*declared[name], {})[1]
            if isinstance(value, list):
                sent = nodes[workflow[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                found += [f"{number}: {name} gets {sent}, not {kind}"] if sent != kind else []
            elif isinstance(kind, list):
                found += [f"{number}: {name}={value} is not in {kind}"] if value not in kind else []
            elif not isinstance(value, WIDGETS[kind]):
                found.append(f"{number}: {name} is no {kind}")
            elif not options.get("min", value) <= value <= options.get("max", value):
                found.append(f"{number}: {name}={value} is out of range")
    return found


def execute(workflow: dict[str, Any], nodes: dict[str, type]) -> dict[str, Any]:
    """Outputs of every node; the workflow must be valid."""
    assert problems(workflow, nodes) == []
    done: dict[str, Any] = {}

    def run(number: str) -> Any:
        if number not in done:
            node = workflow[number]
            given = {k: run(v[0])[v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
            one = nodes[node["class_type"]]()
            done[number] = getattr(one, one.FUNCTION)(**given)
            assert isinstance(done[number], dict) or len(done[number]) == len(one.RETURN_TYPES)
        return done[number]

    for number in workflow:
        run(number)
    return done


def read_workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
