"""Credit for uploads."""

from hypothesis import given
from hypothesis import strategies as st

from broker_coordinator.credit import CreditWindow

CHUNK = 1 << 16


def test_the_sum_stays_within_the_window():
    """Who comes when it is full gets nothing, and something once another has spent its own."""
    window = CreditWindow(4 * CHUNK, per_update=2 * CHUNK)
    assert window.grant(b"a", 10 * CHUNK, 0.0) == 2 * CHUNK
    assert window.grant(b"b", 10 * CHUNK, 0.0) == 2 * CHUNK
    assert window.grant(b"c", 10 * CHUNK, 0.0) == 0
    assert not window.spend(b"a", CHUNK, 0.0)
    assert window.spend(b"a", CHUNK, 0.0)
    assert window.grant(b"c", 10 * CHUNK, 0.0) == 2 * CHUNK


def test_a_grant_is_whole_chunks_or_all_that_is_wanted():
    """Half a chunk would be sent twice."""
    window = CreditWindow(2 * CHUNK + 5000)
    assert window.grant(b"a", 3000, 0.0) == 3000
    assert window.grant(b"b", 10 * CHUNK, 0.0) == 2 * CHUNK


def test_a_new_grant_replaces_the_old_one():
    """A device that asks again has lost what was under way."""
    window = CreditWindow(4 * CHUNK)
    window.grant(b"a", 4 * CHUNK, 0.0)
    assert window.grant(b"a", 4 * CHUNK, 0.0) == 4 * CHUNK
    assert window.granted == 4 * CHUNK


def test_credit_of_a_silent_device_comes_back():
    """After a minute without a byte."""
    window = CreditWindow(4 * CHUNK)
    window.grant(b"a", 4 * CHUNK, 0.0)
    assert window.grant(b"b", CHUNK, 59.0) == 0
    assert window.grant(b"b", CHUNK, 60.0) == CHUNK


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["grant", "spend", "release"]),
            st.sampled_from([b"a", b"b", b"c"]),
            st.integers(0, 1 << 20),
            st.floats(0, 200),
        )
    )
)
def test_the_window_holds_whatever_happens(turns):
    """Never negative, never above the window, and nothing leaks."""
    window, now = CreditWindow(8 * CHUNK), 0.0
    for verb, update_id, amount, pause in turns:
        now += pause
        if verb == "release":
            window.release(update_id)
        else:
            getattr(window, verb)(update_id, amount, now)
        assert 0 <= window.granted <= 8 * CHUNK
    for update_id in (b"a", b"b", b"c"):
        window.release(update_id)
    assert window.granted == 0
