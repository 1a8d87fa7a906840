"""Code of the user's by its name: what is misspelt is told with what was meant."""

import pytest

from fl_io.users_code import imported, made
from fl_protocol.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """One with a module of the user's in it."""
    (tmp_path / "garden_rules.py").write_text(
        "class MeanOfMeans: pass\ndef devices(n, seed): return []\nLIMIT = 3\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("garden_rules:device", "did you mean garden_rules:devices?"),
        ("garden_rules:LIMITS", "garden_rules has MeanOfMeans, devices"),
        ("garden_rule:devices", "did you mean garden_rules:devices?"),
    ],
)
def test_a_name_misspelt_is_told_with_the_nearest(folder, name, hint):
    """Of the module's own names, or of the modules in the folder."""
    with pytest.raises(ConfigError) as caught:
        imported(name, what="function", folder=folder)
    assert caught.value.hint == hint
    with pytest.raises(ConfigError) as caught:
        made(name, what="trainer", folder=folder)
    assert caught.value.hint == hint


def test_what_fails_inside_the_module_is_no_name_misspelt(tmp_path):
    """A package that is not installed is not one of the user's modules."""
    (tmp_path / "needs_much.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(ConfigError) as caught:
        imported("needs_much:devices", what="function", folder=str(tmp_path))
    assert "needs its packages installed" in caught.value.hint
