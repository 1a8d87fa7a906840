"""The bench of error feedback: its rows are of whole simulated fleets."""

from hil.bench.feedback import figures


def test_feedback_changes_what_is_learned_and_not_what_is_sent():
    """Two versions of a small fleet: bits an element stay below those of a mask, accuracies are shares."""
    codecs = ("sparse(bits=1,keep=0.04)", "sparse(bits=1,feedback=0,keep=0.04)")
    with_it, without = figures(versions=4, seeds=1, devices=6, hidden=16, codecs=codecs)
    assert [with_it["codec"], without["codec"]] == list(codecs)
    for row in (with_it, without):
        assert 0 < row["bits"] < 1
        assert 0 < row["last_min"] <= row["last"] <= 1
    assert with_it["last"] != without["last"]
