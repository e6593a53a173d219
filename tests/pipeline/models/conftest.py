"""Tiny random checkpoints, written once a test session."""

from pathlib import Path

import pytest

from tests.support import tiny_checkpoints


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session", params=["gemma", "gemma2"])
def paligemma_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_checkpoints.write_paligemma(folder, request.param)
