"""What the pages of benchmarks say of the figures that they are given."""

import importlib.util
import sys
from types import ModuleType

import pytest

from face2scene.common.reproducibility import REPOSITORY


@pytest.fixture(scope="module", params=["contrast", "cost"])
def benchmark_module(request) -> ModuleType:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        place = REPOSITORY / f"benchmarks/{request.param}.py"
        specification = importlib.util.spec_from_file_location(f"benchmark_{request.param}", place)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(REPOSITORY / "benchmarks"))


def kind(top1: float) -> dict:
    return {"top1": {"50": 0.1, "100": top1}, "same": 0.9, "different": 0.3, "seconds": 60.0}


@pytest.mark.parametrize("benchmark_module", ["contrast"], indirect=True)
@pytest.mark.parametrize(
    ("lq_only", "copy", "wanted"),
    [
        (0.33, 0.03, ["`lq_only` learns", "`lq_only` no difference is found (-0.01)", "`copy` the pair pays (+0.29)"]),
        (0.03, 0.60, ["`lq_only` does not learn", "`lq_only` the pair pays (+0.29)", "the pair loses (-0.28)"]),
    ],
)
def test_contrast_verdict_follows_the_figures(benchmark_module, lq_only, copy, wanted):
    kinds = {"lq_only": kind(lq_only), "copy": kind(copy), "pair": kind(0.32)}
    text = benchmark_module.page({"steps": 100, "operators": 50, "kinds": kinds})
    assert all(words in text.replace("\n", " ") for words in wanted), text
    assert "| `pair` | 0.10 | 0.32 | 0.90 | 0.30 | 60 |" in text and "chance finds\n0.02" in text


@pytest.mark.parametrize("benchmark_module", ["cost"], indirect=True)
def test_tiny_restorers_compare_at_one_size(benchmark_module):
    ours, other = {"seconds": 2.0, "size": 512}, {"seconds": 3.0, "size": 512}
    names = "Face2Scene, Stage II, tiny", "S3Diff, tiny"
    assert "1.50 times" in benchmark_module.tiny_ratio(dict(zip(names, (ours, other), strict=True)))
    assert benchmark_module.tiny_ratio(dict(zip(names, (ours, other | {"size": 256}), strict=True))) == ""
    assert benchmark_module.tiny_ratio({names[0]: ours}) == ""
    assert set(benchmark_module.MEASURED) <= set(benchmark_module.METHODS)
