"""The files of deploy/, and the programs of others that check them where they are installed."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

for name in ("unit_file", "booted_machine"):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


@pytest.fixture
def promtool():
    """Prometheus's own checker."""
    return shutil.which("promtool") or pytest.skip("promtool is not installed")
