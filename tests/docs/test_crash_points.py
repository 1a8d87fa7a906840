"""docs/reliability.md lists the crash points that the code has."""

import crash_points


def test_the_list_of_crash_points_is_that_of_the_code():
    """A new, renamed or removed one: run ``python tests/crash_points.py``."""
    assert crash_points.PAGE.read_text() == crash_points.page()
    assert f"`{crash_points.crash_points()[0].name}`" in crash_points.PAGE.read_text()


def test_a_point_of_a_shared_function_bears_its_callers_purpose(tmp_path):
    """By position or by name, through a function that passes it on too; without one there is no point."""
    for package in crash_points.PACKAGES:
        (tmp_path / package).mkdir(parents=True)
    (tmp_path / "fl_io" / "disk.py").write_text(
        "def seal(path, *, purpose):\n    crash_point(f'{purpose}.synced')\n"
        "def write(path, purpose=''):\n    crash_point(f'{purpose}.written')\n"
        "    seal(path, purpose=purpose)\n"
    )
    (tmp_path / "edge_agent" / "a.py").write_text(
        "write(path, 'agent.key')\nseal(path, purpose='agent.part')\nwrite(path)\ncrash_point('agent.sent')\n"
    )
    found = {point.name for point in crash_points.crash_points(tmp_path)}
    assert found == {"agent.key.written", "agent.key.synced", "agent.part.synced", "agent.sent"}
