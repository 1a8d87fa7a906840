"""docs/architecture.md tells the truth about where things live."""

import importlib.util
from pathlib import Path

import pytest

MAKER = Path(__file__).with_name("make_rooms.py")


@pytest.fixture(scope="module")
def maker():
    """The script that writes the list."""
    spec = importlib.util.spec_from_file_location("make_rooms", MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_has_its_line_in_the_list_of_rooms(maker):
    """A new, renamed or removed module, or a changed first sentence: run tests/docs/make_rooms.py."""
    assert maker.PAGE.read_text() == maker.page()


def test_every_module_says_its_job_in_its_first_sentence(maker):
    """The list is made of docstrings, so each module has one."""
    for package in maker.PACKAGES:
        for path in (maker.ROOT / package).glob("*.py"):
            assert maker.sentence(path), f"{path} has no docstring"
