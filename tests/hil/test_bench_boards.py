"""The bench of boards: figures from a report, all of those that its section shows."""

import json

import pytest

from fl_protocol.errors import LichenError
from hil.bench.boards import boards, boards_section

FIGURES = {
    "ready_to_boot_s": 25.0,
    "flash_s": 5.5,
    "copy_s": 3.0,
    "first_connection_s": 181.4,
    "first_update_s": 208.0,
    "agent_rss_mib": 27.7,
    "training_rss_mib": 107.7,
}


def report(folder, figures, result="passed"):
    """The JSON of a session of one scenario."""
    outcome = {"board": "qemu", "scenario": "join", "result": result, "seconds": 95.0, "reason": ""}
    path = folder / "report.json"
    path.write_text(json.dumps({"outcomes": [outcome], "figures": {"qemu": figures}}))
    return path


def test_the_section_is_made_of_a_report(tmp_path):
    """Flashing is compared with the copy; the image was in the cache."""
    section = boards_section(boards(report(tmp_path, FIGURES)))
    assert "| beyond copying the image, s | 2.5 | <= 5 |" in section
    assert "1 of\n1 scenarios went well, in 2 minutes" in section
    assert "the image from the cache" in section


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_figure_that_was_not_measured_is_named(tmp_path, name):
    """No section is made of a report that lacks one."""
    rest = {key: value for key, value in FIGURES.items() if key != name}
    with pytest.raises(LichenError, match=f"{name} not measured"):
        boards(report(tmp_path, rest))


def test_a_scenario_that_failed_is_named(tmp_path):
    """Figures of a run that went wrong are none."""
    with pytest.raises(LichenError, match="no figures of qemu: join"):
        boards(report(tmp_path, FIGURES, result="failed"))
