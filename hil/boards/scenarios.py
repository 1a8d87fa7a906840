"""The scenarios: what happens to a device in the field, the same for every board.

Each is a function of a board that is off, or on and well, and of a site that serves. It breaks one thing,
sees the device go on, and ends with the books: every update that the device ever made is folded into a
version exactly once. What it waits for is said, and bounded. Those of ``PAIR_SCENARIOS`` have two boards.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from hil.boards.board import CUT, Board, BoardFailure
from hil.boards.site import Site

__all__ = [
    "PAIR_SCENARIOS",
    "SCENARIOS",
    "PairScenario",
    "Scenario",
    "balance",
    "balance_all",
    "broker_away",
    "coordinator_away",
    "full_disk",
    "join",
    "link_away",
    "needs",
    "power_cut_in_training",
    "power_cut_in_upload",
    "train",
    "two_power_cuts_in_upload",
    "wrong_clock",
]

Scenario = Callable[[Board, Site], None]
PairScenario = Callable[[Sequence[Board], Site], None]

JOIN_S = 60.0
TRAIN_S = 120.0
NOTICE_S = 90.0
"""Until somebody sees that the other one is gone: one and a half keep-alives, and the next try to connect."""
DELIVER_S = 120.0
FOLD_S = 60.0
SLOW_LINK = "satellite"
_ATTEMPTS = 5
"""A power cut is to meet a device in the middle of something, and may come too late."""
_ONE_MESSAGE = 48 << 10
"""An update up to about this size travels within its header."""
_IN_2099 = 4_070_908_800.0

SCENARIOS: dict[str, Scenario] = {}
PAIR_SCENARIOS: dict[str, PairScenario] = {}
_NEEDS: dict[str, str] = {}


def needs(scenario: Scenario | PairScenario) -> str:
    """The ability that a scenario asks of a board; empty if none."""
    return _NEEDS.get(scenario.__name__, "")


def _scenario(ability: str = "") -> Callable[[Scenario], Scenario]:
    def enter(scenario: Scenario) -> Scenario:
        SCENARIOS[scenario.__name__] = scenario
        if ability:
            _NEEDS[scenario.__name__] = ability
        return scenario

    return enter


@_scenario()
def join(board: Board, site: Site) -> None:
    """Switched on, the device comes on line, and the coordinator knows it."""
    _off(board)
    board.start()
    _wait(site, board, "the device is connected", lambda: board.status().get("connected"), JOIN_S)
    _wait(site, board, "the coordinator sees it", lambda: site.status().get("devices_online"), JOIN_S)
    balance(board, site)


@_scenario()
def train(board: Board, site: Site) -> None:
    """It trains, its update is folded, and it trains on the version that was made of it."""
    _on(board, site)
    _folds(board, site, 2)
    balance(board, site)


@_scenario("power")
def power_cut_in_training(board: Board, site: Site) -> None:
    """Power fails while it trains: nothing of that was promised, and the next start trains again."""
    _on(board, site)
    for _ in range(_ATTEMPTS):
        _wait(site, board, "it trains", lambda: _trains(board), TRAIN_S)
        before = _created(board)
        board.cut_power()
        board.start()
        _wait(site, board, "it is back", lambda: board.status().get("running"), JOIN_S)
        if _created(board) == before:
            break
    else:
        raise BoardFailure(
            f"power was never cut within a training, in {_ATTEMPTS} attempts",
            hint="let it train longer: epochs",
        )
    _folds(board, site, 1)
    balance(board, site)


@_scenario("power")
def power_cut_in_upload(board: Board, site: Site) -> None:
    """Power fails while an update is on its way over a slow link: it is sent again, and counted once."""
    _on(board, site)
    for _ in range(_ATTEMPTS):
        _wait(site, board, "it trains", lambda: _trains(board), TRAIN_S)
        board.link(SLOW_LINK)
        _wait(site, board, "an update is on its way", lambda: _sends(board, site), TRAIN_S)
        board.cut_power()
        board.start()
        _wait(site, board, "it is back", lambda: board.status().get("running"), JOIN_S)
        cut = bool(_waiting(board))
        board.link("lan")
        if cut:
            break
    else:
        raise BoardFailure(f"power was never cut within an upload, in {_ATTEMPTS} attempts")
    _folds(board, site, 1)
    balance(board, site)


def two_power_cuts_in_upload(boards: Sequence[Board], site: Site) -> None:
    """Power fails on two devices, on each while an update of its own is on its way: both are counted once."""
    for board in boards:
        _on(board, site)
    _wait_all(site, boards, "an update of each is done", lambda board: _done(board) >= 1, TRAIN_S + DELIVER_S)
    for _ in range(_ATTEMPTS):
        for board in boards:
            board.link(SLOW_LINK)
        powered = list(boards)

        def cut_whoever_sends(powered: list[Board] = powered) -> bool:
            for board in tuple(powered):
                if _sends(board, site):
                    board.cut_power()
                    powered.remove(board)
            return not powered

        _wait(site, boards[0], "an update of each is on its way", cut_whoever_sends, 2 * TRAIN_S)
        # A part of it lies with the coordinator, and nobody is there who could send the rest.
        cut = {board.device: site.under_way(board.device) > 0 for board in boards}
        for board in boards:
            board.start()
        _wait_all(site, boards, "both are back", lambda board: board.status().get("running"), 2 * JOIN_S)
        met = all(cut[board.device] or _waiting(board) for board in boards)
        for board in boards:
            board.link("lan")
        if met:
            break
    else:
        raise BoardFailure(f"power was never cut within both uploads, in {_ATTEMPTS} attempts")
    _folds(boards[0], site, len(boards))
    balance_all(boards, site)


PAIR_SCENARIOS[two_power_cuts_in_upload.__name__] = two_power_cuts_in_upload
_NEEDS[two_power_cuts_in_upload.__name__] = "power"


@_scenario("link")
def link_away(board: Board, site: Site) -> None:
    """Its link carries nothing for a while: it trains on, and delivers when the link is back."""
    _on(board, site)
    _wait(site, board, "it trains", lambda: _trains(board), TRAIN_S)
    board.link(CUT)
    _wait(site, board, "an update waits in the outbox", lambda: _waiting(board), TRAIN_S)
    board.link("lan")
    _folds(board, site, 1)
    balance(board, site)


@_scenario()
def broker_away(board: Board, site: Site) -> None:
    """The broker is gone for a while, with all that it kept: what was made meanwhile comes later."""
    _on(board, site)
    _wait(site, board, "it trains", lambda: _trains(board), TRAIN_S)
    site.stop_broker()
    _wait(
        site,
        board,
        "it sees that the broker is gone",
        lambda: not board.status().get("connected", True),
        NOTICE_S,
    )
    site.start_broker()
    _folds(board, site, 1)
    balance(board, site)


@_scenario()
def coordinator_away(board: Board, site: Site) -> None:
    """The coordinator is killed, and is away for a while: an update waits on the device until it is back."""
    _on(board, site)
    _wait(site, board, "it trains", lambda: _trains(board), TRAIN_S)
    site.kill_coordinator()
    _wait(site, board, "an update waits in the outbox", lambda: _waiting(board), TRAIN_S)
    site.start_coordinator()
    _folds(board, site, 1)
    balance(board, site)


@_scenario("disk")
def full_disk(board: Board, site: Site) -> None:
    """Its disk is full: it says so, loses nothing that it had promised, and goes on when there is room."""
    _on(board, site)
    _folds(board, site, 1)
    try:
        board.fill_disk()
        _wait(site, board, "it says that its disk is full", lambda: _says_full(board), TRAIN_S)
    finally:
        board.free_disk()
    _folds(board, site, 1)
    balance(board, site)


@_scenario("clock")
def wrong_clock(board: Board, site: Site) -> None:
    """It boots in 1970, and its clock jumps to 2099 while it works: nothing is ordered by the wall clock."""
    _off(board)
    board.set_clock(0.0)
    try:
        _on(board, site)
        _folds(board, site, 1)
        board.set_clock(_IN_2099)
        _folds(board, site, 1)
    finally:
        board.set_clock(time.time())
    balance(board, site)


def balance(board: Board, site: Site) -> None:
    """Let the device deliver what it has, switch it off, and audit: the journal balances, every version is
    made again bit for bit, and every update that the device ever made is folded exactly once.

    Raises:
        BoardFailure: it is not so.
    """
    balance_all((board,), site)


def balance_all(boards: Sequence[Board], site: Site) -> None:
    """The same of several devices, in one audit.

    Raises:
        BoardFailure: it is not so.
    """
    for _ in range(_ATTEMPTS):
        _wait_all(site, boards, "its outbox is empty", lambda board: _waiting(board) == 0, DELIVER_S)
        for board in boards:
            board.stop()
        # Between that and the end one may have finished one more.
        report = _audit(boards, site)
        if not report["outbox"]:
            break
        for board in boards:
            board.start()
        _wait_all(site, boards, "it is back", lambda board: board.status().get("connected"), JOIN_S)
    accepted = report["accepted"]
    _wait(site, boards[0], "every accepted update is folded", lambda: site.folded() >= accepted, FOLD_S)
    report = _audit(boards, site)
    if not report["balanced"]:
        raise BoardFailure("the books do not balance", hint="; ".join(report["faults"]))
    made, done, folded = (report[name] for name in ("created", "done", "folded"))
    if report["agents"] and not made == done == folded:
        raise BoardFailure(
            f"{made} updates were made, {done} are done, {folded} are folded",
            hint=f"lichen audit {site.state}",
        )


def _audit(boards: Sequence[Board], site: Site) -> dict[str, Any]:
    books = [board.books() for board in boards]
    # An audit of some of them would miss what the others made.
    return site.audit(*(folder for folder in books if folder is not None and None not in books))


def _on(board: Board, site: Site) -> None:
    """See that it is on and connected."""
    if not board.status().get("running"):
        board.start()
    _wait(site, board, "the device is connected", lambda: board.status().get("connected"), JOIN_S)


def _off(board: Board) -> None:
    if board.status().get("running"):
        board.stop()


def _folds(board: Board, site: Site, count: int) -> None:
    """Wait until so many more updates are folded."""
    target = site.folded() + count
    _wait(
        site,
        board,
        f"update {target} is folded",
        lambda: site.folded() >= target,
        count * (TRAIN_S + DELIVER_S),
    )


def _trains(board: Board) -> bool:
    return bool(board.status().get("worker", {}).get("job") == "train")


def _sends(board: Board, site: Site) -> bool:
    """Whether an update is on its way; one that travels in chunks, in part. A device that has a newer version
    already trains on while it sends."""
    status = board.status()
    if not status.get("outbox", {}).get("count"):
        return False
    if status["outbox"]["bytes"] <= _ONE_MESSAGE:
        return bool(status.get("state") == "uploading")
    return site.under_way(board.device) > 0


def _created(board: Board) -> int:
    return int(board.status().get("updates", {}).get("created", 0))


def _done(board: Board) -> int:
    return int(board.status().get("updates", {}).get("done", 0))


def _waiting(board: Board) -> int | None:
    """Updates in its outbox; None where it does not say."""
    count = board.status().get("outbox", {}).get("count")
    return None if count is None else int(count)


def _says_full(board: Board) -> bool:
    said = f"{board.status().get('idle_reason', '')} {board.logs()}"
    return "No space" in said or "disk is full" in said or "disk or database is full" in said


def _wait_all(
    site: Site, boards: Sequence[Board], what: str, holds: Callable[[Board], object], within_s: float
) -> None:
    """Wait until it holds for all of them at a time; each is asked each time."""
    _wait(site, boards[0], what, lambda: len(boards) == sum(bool(holds(board)) for board in boards), within_s)


def _wait(site: Site, board: Board, what: str, holds: Callable[[], object], within_s: float) -> None:
    def why() -> str:
        return f"{board.device} says {board.status()}; its last words: {board.logs()[-1500:]}"

    site.until(f"{board.device}: {what}", holds, within_s=within_s * board.slowness, why=why)
