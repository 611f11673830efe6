"""What all tests share: one thread, the real data where it is, and the rule that CI skips nothing."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_configure():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, labels and weights: $MEDMERGE_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("MEDMERGE_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        refuse = pytest.fail if os.environ.get("MEDMERGE_CI") == "1" else pytest.skip
        refuse(f"needs real data: no folder {folder}; set MEDMERGE_DATA")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Decoded images of tests never meet the user's."""
    monkeypatch.setenv("MEDMERGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
