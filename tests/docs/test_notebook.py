"""The notebook under examples/ does what it says: its cells are run as they stand, in order."""

import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "simulation.ipynb"
RUN = """
import json, pathlib, sys

cells = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
assert names["weighted"].accuracy > 0.8 and not names["weighted"].refused
payloads = {codec: result.payload_bytes / result.encoded for codec, result in names["codecs"].items()}
assert payloads["float32"] > 20 * payloads["eden(bits=1)"], payloads
assert all(result.accuracy > 0.8 for result in names["codecs"].values())
"""


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    """In a folder of its own; every run learns, and one bit is as small as the text between cells says."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(NOTEBOOK)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_notebook_is_kept_without_what_it_printed():
    """Outputs would be figures that no command made, and noise in every change."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code" and cell["outputs"]] == []
