"""Doubles: two live devices under one identity, noticed by their births.

A broker lets one connection live under a name: each of two throws the other out, and both come back. Every
run of an agent has a random ``life``, every state directory an ``incarnation``. Neither returns once it was
replaced; where one does, in a new session, two of them are alive. A birth that is merely repeated, or
comes again after a lost acknowledgement, has a session that was seen.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from fl_protocol.presence import DevicePresence

__all__ = ["COPIED_STATE", "SAME_NAME", "Doubles"]

MOST_DEVICES = 1 << 16
MOST_REMEMBERED = 4
"""Lives, and incarnations, of each device: so many machines may take turns under one name."""
COPIED_STATE = "a copy of its state folder runs too: a card, or an image, was copied"
SAME_NAME = "another installation runs under its name, with its credential"


_Births: TypeAlias = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class _Seen:
    """What one device was born with: pairs with the newest session of each, the newest pair last."""

    lives: _Births = ()
    incarnations: _Births = ()


class Doubles:
    """Remembers the last births of each device; of the 65,536 devices born last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def born(self, device: str, presence: DevicePresence) -> str:
        """Note a birth; how its identity is doubled if it shows that, else empty."""
        seen = self._seen.setdefault(device, _Seen())
        self._seen.move_to_end(device)
        if len(self._seen) > MOST_DEVICES:
            self._seen.popitem(last=False)
        seen.incarnations, other = _born(seen.incarnations, presence.incarnation, presence.session)
        seen.lives, same = _born(seen.lives, presence.life, presence.session)
        return SAME_NAME if other else COPIED_STATE if same else ""


def _born(known: _Births, key: bytes | None, session: bytes) -> tuple[_Births, bool]:
    """``known`` with ``key`` as the newest; and whether it had been replaced by another, and is back in a new
    session."""
    if key is None:
        return known, False
    last = dict(known).get(key)
    returned = last is not None and known[-1][0] != key and last != session
    others = [birth for birth in known if birth[0] != key]
    return (*others[1 - MOST_REMEMBERED :], (key, session)), returned
