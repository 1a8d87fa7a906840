"""The table, the page and the JSON of a session: outcomes, and what boards measured."""

import json
from types import SimpleNamespace

from hil.boards.report import figures, outcomes, table, write_json, write_page


def report(scenario, measured, outcome="passed"):
    """What pytest reports of a scenario on the board qemu."""
    properties = [("hil", ["qemu", scenario]), ("hil_figures", ["qemu", measured])]
    return SimpleNamespace(
        user_properties=properties,
        when="call",
        passed=outcome == "passed",
        failed=False,
        skipped=False,
        outcome=outcome,
        duration=12.0,
    )


def test_the_last_word_on_a_figure_counts(tmp_path):
    """A figure that grows in the course of a session is shown as it was at the end, everywhere."""
    reports = [
        report("join", {"flash_s": 6.5, "agent_rss_mib": 26.0}),
        report("train", {"agent_rss_mib": 28.5}),
    ]
    found, measured = outcomes(reports), figures(reports)
    assert measured == {"qemu": {"flash_s": 6.5, "agent_rss_mib": 28.5}}
    assert "qemu: agent, most RSS, MiB: 28.5" in table(found, measured)
    write_page(tmp_path / "page.html", found, measured)
    assert "<td>28.5</td>" in (tmp_path / "page.html").read_text()
    body = json.loads(write_json(tmp_path / "page.json", found, measured).read_text())
    assert body["figures"] == measured
    assert [outcome["scenario"] for outcome in body["outcomes"]] == ["join", "train"]


def test_scenarios_stand_in_their_own_order():
    """Those of one board, that of two, and behind them what a project has of its own."""
    found = outcomes(report(name, {}) for name in ("mine", "two_power_cuts_in_upload", "wrong_clock", "join"))
    rows = [line.split()[0] for line in table(found).splitlines()[1:]]
    assert rows == ["join", "wrong_clock", "two_power_cuts_in_upload", "mine"]
