"""A new project simulates as it is written."""

import sys

import pytest
from click.testing import CliRunner

from fl_protocol.errors import ConfigError
from hil.simulate.project import FILES, new, write_project
from hil.simulate.scenario import read_scenario, run_scenario


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch):
    """A scenario's folder goes to Python's path, and its module stays loaded."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_data", None)


def test_a_new_project_simulates(tmp_path):
    """Its own data on each device, measured on its own evaluation; smaller than it is written."""
    folder = tmp_path / "garden"
    said = CliRunner().invoke(new, [str(folder)])
    assert said.exit_code == 0, said.output
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    small = ["devices=8", "versions=2", "fleet.buffer.size=4", 'runtimes=["numpy"]']
    result = run_scenario(read_scenario(str(folder / "scenario.toml"), small))
    assert result.versions == 2
    assert result.devices_heard >= 4
    assert result.accuracy_source == "coordinator"


def test_what_is_there_is_not_written_over(tmp_path):
    """Nor is a name taken that no fleet could have."""
    write_project(tmp_path / "garden")
    with pytest.raises(ConfigError, match="not empty"):
        write_project(tmp_path / "garden")
    with pytest.raises(ConfigError, match="no name"):
        write_project(tmp_path / "my garden")
