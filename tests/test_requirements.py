"""The versions that pyproject.toml allows, and those that `make test-oldest` runs with."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from toml_files import read_toml

from face2scene.common.reproducibility import REPOSITORY


@pytest.fixture(scope="module")
def project() -> dict:
    return read_toml(REPOSITORY / "pyproject.toml")["project"]


@pytest.fixture(scope="module")
def oldest() -> dict[str, str]:
    """Version of each package in constraints-oldest.txt."""
    lines = (REPOSITORY / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def lower_bounds(lines: list[str]) -> dict[str, set[str]]:
    bounds: dict[str, set[str]] = {}
    for requirement in map(Requirement, lines):
        versions = {one.version for one in requirement.specifier if one.operator == ">="}
        bounds.setdefault(canonicalize_name(requirement.name), set()).update(versions)
    return bounds


def test_core_bounds_are_tested_versions(project, oldest):
    bounds = lower_bounds(project["dependencies"])
    assert {name: {oldest[name]} for name in bounds} == bounds


def test_tested_versions_are_bounds(project, oldest):
    lines = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    bounds = lower_bounds(lines)
    assert {name: {version} for name, version in oldest.items()} == {name: bounds[name] for name in oldest}


def test_classifiers_name_every_python(project):
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.M)
    assert named == ["3.10", "3.11", "3.12", "3.13"]
    assert all(SpecifierSet(project["requires-python"]).contains(version) for version in named)
    assert not SpecifierSet(project["requires-python"]).contains("3.9")
