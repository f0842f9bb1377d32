"""Face2Scene: the face in a degraded photo measures the degradation, and the whole photo is restored with it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from face2scene.inference.pipeline import Face2ScenePipeline

__all__ = ["Face2ScenePipeline"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Face2ScenePipeline":  # on first use, so that the package itself imports without torch
        from face2scene.inference.pipeline import Face2ScenePipeline

        return Face2ScenePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
