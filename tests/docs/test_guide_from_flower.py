"""The page for people who come from Flower, followed word for word in an empty folder."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "my_data.py": ("python", "def devices("),
    "my_rules.py": ("python", "class RootMean"),
    "root.toml": ("toml", "my_rules:RootMean"),
}
"""What the page has one write, and the block that it stands in."""


@pytest.fixture
def page(documents):
    (found,) = [document for document in documents if document.path.name == "guide-from-flower.md"]
    return found


def run(words: list[str], folder: Path) -> str:
    """Run a command of the page, which must end well; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)  # six commands, each a process of its own
def test_the_page_leads_from_an_empty_folder_to_a_comparison(page, tmp_path):
    """Files are written as they stand, commands typed in their order: both rules learn, one is audited."""
    begin, *later = page.blocks("")
    folder = tmp_path
    for line in begin.splitlines():
        words = shlex.split(line)
        if words[0] == "cd":
            folder = folder / words[1]
        else:
            run(words, folder)
    for name, (language, holding) in FILES.items():
        assert f"`{name}`" in page.prose
        (folder / name).write_text(page.block(language, holding), encoding="utf-8")

    printed = [run(shlex.split(line), folder) for block in later for line in block.splitlines()]

    assert len(printed) == 4
    assert all(name in printed[0] for name in ("scenario", "root"))
    assert "200" in printed[3]
    runs = {name: json.loads((folder / "runs" / f"{name}.json").read_text()) for name in ("scenario", "root")}
    for name, body in runs.items():
        assert body["accuracy"] > 0.75, name
        assert body["accuracy_source"] == "coordinator"
    assert runs["scenario"]["state_hash"] != runs["root"]["state_hash"]
    assert (folder / "runs" / "comparison.html").exists()


def test_the_partition_deals_each_sample_out_once_and_unevenly(page):
    """As the partitioner that it stands for: half of the devices have two fifths and more of one digit."""
    names: dict = {}
    exec(page.block("python", "def devices("), names)
    shares = [y for _, y in names["devices"](20, 0)]
    assert sum(map(len, shares)) == 1437
    tops = [max((y == digit).mean() for digit in range(10)) for y in shares if len(y)]
    assert sorted(tops)[len(tops) // 2] > 0.4
    assert [len(y) for _, y in names["devices"](20, 0)] == [len(y) for y in shares]
