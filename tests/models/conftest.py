"""Fixtures of tests/models."""

import pytest
from s3diff_reference import write_base, write_released


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A base model with the layers that S3Diff adapts."""
    return write_base(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def released_files(base_folder, tmp_path_factory):
    """S3Diff's released files at that size: (pickle's content, de_net's content, the converted file)."""
    return write_released(tmp_path_factory.mktemp("released"), base_folder)
