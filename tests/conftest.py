"""What every test has: checked shapes, one thread, and the real recordings where they are."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: two workers with two threads each stand in their way
install_import_hook("brainjanus", "beartype.beartype")  # before brainjanus is: its annotations are checked claims

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's story takes longest: it starts first, and the other worker does the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings, which are no part of the project."""
    folder = Path(os.environ.get("BRAINJANUS_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real recordings: {folder} is absent; set BRAINJANUS_REAL_DATA to their folder")
    return folder
