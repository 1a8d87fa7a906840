"""Doubles: two live devices under one identity, noticed by their births.

A broker lets one connection live under a name: each of two throws the other out, and both come back. Every
run of an agent has a random ``life``, every state directory an ``incarnation``. Neither returns once it was
replaced; where one does, in a new session, two of them are alive. A birth that is merely repeated, or
comes again after a lost acknowledgement, has a session that was seen.
"""

from collections import OrderedDict
from typing import TypeAlias

from fl_protocol.presence import DevicePresence

__all__ = ["COPIED_STATE", "SAME_NAME", "Doubles"]

MOST_DEVICES = 1 << 16
MOST_REMEMBERED = 4
"""Lives, and incarnations, of each device: so many machines may take turns under one name."""
COPIED_STATE = "a copy of its state folder runs too: a card, or an image, was copied"
SAME_NAME = "another installation runs under its name, with its credential"


_Births: TypeAlias = bytes
"""What a device was born with, each with the newest session of it: as long as each other, the newest last."""


class Doubles:
    """Remembers the last births of each device; of the 65,536 devices born last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[_Births, _Births]] = OrderedDict()
        """Incarnations and lives, as few bytes: a coordinator remembers many devices."""

    def born(self, device: str, presence: DevicePresence) -> str:
        """Note a birth; how its identity is doubled if it shows that, else empty."""
        incarnations, lives = self._seen.get(device, (b"", b""))
        incarnations, other = _born(incarnations, presence.incarnation, presence.session)
        lives, same = _born(lives, presence.life, presence.session)
        self._seen[device] = incarnations, lives
        self._seen.move_to_end(device)
        if len(self._seen) > MOST_DEVICES:
            self._seen.popitem(last=False)
        return SAME_NAME if other else COPIED_STATE if same else ""


def _born(known: _Births, key: bytes | None, session: bytes) -> tuple[_Births, bool]:
    """``known`` with ``key`` as the newest; and whether it had been replaced by another, and is back in a new
    session."""
    if key is None:
        return known, False
    size = len(key) + len(session)
    births = [known[at : at + size] for at in range(0, len(known), size)]
    sessions = {birth[: len(key)]: birth[len(key) :] for birth in births}
    returned = sessions.get(key, session) != session and not births[-1].startswith(key)
    others = [birth for birth in births if not birth.startswith(key)]
    return b"".join((*others[1 - MOST_REMEMBERED :], key, session)), returned
