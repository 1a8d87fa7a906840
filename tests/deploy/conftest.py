"""The files of deploy/, and the programs of others that check them where they are installed."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

if "unit_file" not in sys.modules:
    spec = importlib.util.spec_from_file_location("unit_file", Path(__file__).parent / "unit_file.py")
    module = sys.modules["unit_file"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


@pytest.fixture
def promtool():
    """Prometheus's own checker."""
    return shutil.which("promtool") or pytest.skip("promtool is not installed")
