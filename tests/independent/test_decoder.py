"""The independent decoder agrees with the frozen vectors, and is independent."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

DECODER = Path(__file__).with_name("decoder.py")
VECTORS = Path(__file__).parents[1] / "vectors"
spec = importlib.util.spec_from_file_location("independent_decoder", DECODER)
decoder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decoder)


@pytest.mark.parametrize("path", sorted((VECTORS / "codec").glob("*.json")), ids=lambda path: path.stem)
def test_the_decoder_written_from_the_text_agrees_with_the_vectors(path):
    """Every decoded float32 has equal bits, every bad payload is refused."""
    assert decoder.faults_in(path) == []


def test_the_decoder_imports_nothing_of_ours_and_no_array_library():
    """It stands on the standard library (and msgpack) alone."""
    tree = ast.parse(DECODER.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"msgpack"}


def test_the_decoder_runs_by_itself(tmp_path):
    """As a command it checks a folder, and fails on a folder without vectors."""
    command = [sys.executable, "-I", str(DECODER)]
    good = subprocess.run(
        [*command, str(VECTORS / "codec")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (good.returncode, good.stdout.split(",")[1]) == (0, " 0 faults\n")
    assert (
        subprocess.run([*command, str(tmp_path)], capture_output=True, check=False, timeout=60).returncode
        == 1
    )


def test_the_decoder_notices_a_wrong_vector(tmp_path):
    """One changed digit of a hash, one accepted payload in the list of refusals."""
    content = (VECTORS / "codec" / "int8.json").read_text()
    wrong = tmp_path / "int8.json"
    wrong.write_text(content.replace('"decoded_sha256": "', '"decoded_sha256": "0', 1))
    assert len(decoder.faults_in(wrong)) == 1
