"""What every test may use."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and reference arrays: a folder `shared` beside the checkout, or where BEYONDPIXEL_SHARED points."""
    folder = Path(os.environ.get("BEYONDPIXEL_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference arrays or real data at {folder} (set BEYONDPIXEL_SHARED to use a copy elsewhere)")
    return folder
