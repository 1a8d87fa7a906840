"""Releases as they were frozen: see ``make_release.py``."""

import json
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RELEASES = sorted(path.parent.name for path in HERE.glob("*/books.json"))


@pytest.fixture(params=RELEASES)
def release(request):
    """The folder of each release in turn."""
    return HERE / request.param


@pytest.fixture
def books(release):
    """What was in its stores."""
    return json.loads((release / "books.json").read_text())


@pytest.fixture
def fleet(release, tmp_path):
    """Its fleet's folder: configurations, and the state folders of a coordinator and of three devices."""
    with tarfile.open(release / "fleet.tar.xz") as archive:
        archive.extractall(tmp_path / "fleet", filter="data")
    return tmp_path / "fleet"
