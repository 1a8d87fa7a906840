"""The examples for people's own CI say what this release understands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from hil.boards.card_image import MAKERS
from hil.boards.debian_root import PACKAGES_OF
from hil.boards.machine import PROGRAM

EXAMPLES = Path(__file__).parents[2] / "deploy" / "ci"


def commands(name: str) -> list[str]:
    """The shell lines of an example."""
    body = yaml.safe_load((EXAMPLES / name).read_text())
    if name == "github-actions.yml":
        # YAML 1.1 reads the word `on` as true.
        assert body[True] == ["push", "pull_request"]
        jobs = body["jobs"].values()
        return [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    return [*body["boards"]["before_script"], *body["boards"]["script"]]


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_an_example_runs_boards_and_keeps_their_page(name, request):
    """Each option of its pytest line is one that pytest and the plug-in know, and the page is kept."""
    text = (EXAMPLES / name).read_text()
    known = {word for option in request.config._parser._anonymous.options for word in option.names()}
    for group in request.config._parser._groups:
        known |= {word for option in group.options for word in option.names()}
    lines = [line for line in commands(name) if "--board" in line]
    assert lines
    for line in lines:
        words = shlex.split(line)
        asked = {word for word in words if word.startswith("--")}
        assert asked <= known, asked - known
        kept = words[words.index("--hil-report") + 1]
        assert len(re.findall(re.escape(kept), text)) == 2


def test_the_example_of_emulated_boards_installs_what_they_need():
    """Each package that a board of qemu would say it lacks."""
    said = "\n".join(commands("github-actions.yml"))
    assert "--board qemu" in said
    lacking = {PACKAGES_OF[name] for name in (*MAKERS, PROGRAM, "debugfs")}
    assert all(f" {package}" in said for package in lacking - {"dpkg"})


def test_another_release_has_another_cache():
    """A key that stayed would keep an image that the new release does not take, and not the one it makes."""
    steps = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"]["emulated"]["steps"]
    (cache,) = (step["with"] for step in steps if "cache@" in step.get("uses", ""))
    assert "${{ env.LICHEN }}" in cache["key"]


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_an_example_installs_what_it_uses(name):
    """mosquitto, pytest, and the extras of coordinator and runtime."""
    said = "\n".join(commands(name))
    assert "mosquitto" in said
    assert '"lichen[onnx,coordinator] @ $LICHEN" pytest' in said
