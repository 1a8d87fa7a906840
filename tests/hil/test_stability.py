"""The bench of stability: the pacing does what it is there for, and a run is the same every time."""

from hil.bench.stability import cell


def test_twenty_times_the_load_is_paced_to_three_buffers():
    """Sixty devices and K = 3: staleness stays near three versions, where it is above twelve unpaced."""
    paced = cell(20.0, "iid", 0, 300)
    unpaced = cell(20.0, "iid", 0, 300, selection="open")
    assert paced.staleness < 4.5
    assert unpaced.staleness > 12
    assert paced.final > unpaced.final
    assert cell(20.0, "iid", 0, 300) == paced
