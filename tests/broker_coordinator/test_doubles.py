"""Doubles: what shows that two live devices share an identity, and what only looks like it."""

import itertools

from broker_coordinator import doubles
from broker_coordinator.doubles import COPIED_STATE, SAME_NAME, Doubles
from fl_protocol.presence import DevicePresence


def births():
    """Makes births, each in a new session unless one is named."""
    count = itertools.count(1)

    def birth(life=None, incarnation=None, session=None):
        number = next(count) if session is None else session
        return DevicePresence(
            online=True,
            session=number.to_bytes(8, "big"),
            life=life and life.encode() * 4,
            incarnation=incarnation and incarnation.encode() * 8,
        )

    return birth


def said(*presences, device="pi"):
    """What is said of each birth in turn."""
    watched = Doubles()
    return [watched.born(device, presence) for presence in presences]


def test_one_device_on_a_bad_link_is_one_device():
    """A new session each time, the same run."""
    birth = births()
    assert set(said(*(birth("a", "x") for _ in range(10)))) == {""}


def test_a_device_that_restarts_is_one_device():
    """Each run is a new life; none returns. So is one whose state folder was begun anew."""
    birth = births()
    assert set(said(*(birth(life, "x") for life in "abcdefgh"))) == {""}
    assert set(said(birth("a", "x"), birth("b", "x"), birth("c", "y"), birth("d", "y"))) == {""}


def test_a_copied_state_folder_shows_by_lives_that_take_turns():
    """From the first return on, each time."""
    birth = births()
    turns = said(*(birth(life, "x") for life in "abab"))
    assert turns == ["", "", COPIED_STATE, COPIED_STATE]


def test_two_installations_of_one_name_show_by_incarnations():
    """Also where both restart between their turns, or do not say which run they are."""
    birth = births()
    assert said(birth("a", "x"), birth("b", "y"), birth("c", "x"))[-1] == SAME_NAME
    assert said(birth(None, "x"), birth(None, "y"), birth(None, "x"))[-1] == SAME_NAME
    assert said(birth("a", "x"), birth("b", "y"), birth("a", "x"))[-1] == SAME_NAME


def test_a_birth_that_comes_again_proves_nothing():
    """A broker sends again what was not acknowledged; a device restates in the session it has."""
    birth = births()
    again = [birth("a", "x", 1), birth("b", "x", 2), birth("a", "x", 1), birth("b", "x", 2)]
    assert set(said(*again)) == {""}


def test_births_that_say_little_prove_nothing():
    """Neither life nor incarnation."""
    birth = births()
    assert set(said(birth(), birth(), birth())) == {""}


def test_what_is_remembered_is_bounded(monkeypatch):
    """Of many devices the newest, of each its last few lives."""
    monkeypatch.setattr(doubles, "MOST_DEVICES", 3)
    birth, watched = births(), Doubles()
    for number in range(10):
        for life in "abcdefghij":
            watched.born(f"pi-{number}", birth(life, life))
    assert list(watched._seen) == ["pi-7", "pi-8", "pi-9"]
    sizes = {(len(incarnations), len(lives)) for incarnations, lives in watched._seen.values()}
    assert sizes == {(4 * (8 + 8), 4 * (4 + 8))}
