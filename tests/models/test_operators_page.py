"""docs/operators.md says what the tables say."""

import importlib.util
from pathlib import Path


def test_the_page_is_current():
    """Run ``python tests/models/make_operators.py`` where it is not."""
    path = Path(__file__).parent / "make_operators.py"
    spec = importlib.util.spec_from_file_location("make_operators", path)
    make_operators = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_operators)
    assert make_operators.PAGE.read_text() == make_operators.page()
