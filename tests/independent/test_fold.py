"""A version made from the text alone, and by the coordinator, is the version that was frozen."""

import ast
import base64
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = json.loads((HERE.parent / "vectors" / "versions" / "fold.json").read_text())["cases"]


def load(name: str):
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


for needed in ("bodies", "decoder"):
    load(needed)
fold = load("fold")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_fold_written_from_the_text_gives_the_frozen_version(case):
    """Every octet of the state file, and so the version's name."""
    state = fold.fold(case)
    assert hashlib.sha256(state).hexdigest() == case["next_sha256"]
    assert state == base64.b64decode(case["next"])


def test_the_fold_is_independent():
    """It imports the standard library and its neighbours, nothing else."""
    tree = ast.parse((HERE / "fold.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names | {"bodies", "decoder"}
