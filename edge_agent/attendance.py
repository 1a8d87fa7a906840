"""Attendance: that the coordinator knows of this device, and the device of its task."""

from collections.abc import Callable

from edge_agent.chance import Chance
from edge_agent.presence import Presence
from fl_io.crash import crash_point
from fl_protocol.clock import Clock
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, GetRequest
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Transport

__all__ = ["Attendance"]

FIRST_GET_S = 10.0
LONGEST_GET_S = 6 * 3600.0
LEAST_SPREAD_S = 2.0
"""A coordinator that comes back meets its fleet spread over this time, or over the task's own spread."""
ALONE_AFTER_S = 30.0
"""How long a coordinator may take to be heard of: longer than to answer the first question for a manifest."""
REPEAT_S = 1.0
LONGEST_SLEEP_S = 86400.0


class Attendance:
    """Birth, subscriptions and the question for a manifest, over one connection.

    ``birth`` makes the birth message when it is due.
    """

    __slots__ = (
        "_alone_at",
        "_birth",
        "_birth_at",
        "_chance",
        "_clock",
        "_device",
        "_get_at",
        "_get_delay",
        "_left",
        "_met",
        "_presence",
        "_session",
        "_task",
        "_topics",
        "_transport",
        "connected",
    )

    def __init__(
        self,
        topics: FleetTopics,
        *,
        device: str,
        task: str,
        transport: Transport,
        clock: Clock,
        presence: Presence,
        birth: Callable[[], bytes],
        chance: Chance,
    ) -> None:
        self.connected = False
        self._topics = topics
        self._device = device
        self._task = task
        self._transport = transport
        self._clock = clock
        self._presence = presence
        self._birth = birth
        self._chance = chance
        self._session: bytes | None = None
        self._met = False
        self._alone_at = 0.0
        self._left = False
        self._birth_at: float | None = None
        self._get_at: float | None = None
        self._get_delay = FIRST_GET_S

    def arrive(self, *, without_task: bool) -> None:
        """A new connection: subscribe before anything is asked, so that no answer is missed."""
        self.connected = True
        self._met = False
        self._alone_at = self._clock.monotonic() + ALONE_AFTER_S
        self._left = without_task
        filters = self._topics.device_filters(self._device, self._task)
        task = self._topics.task(self._task)
        self._transport.subscribe([name for name in filters if name != task or not without_task])
        self._birth_at = self._clock.monotonic()
        self._ask_in(FIRST_GET_S)

    @property
    def alone(self) -> bool:
        """Whether this connection, though it stands for a while, has brought no word of any coordinator."""
        return self.connected and not self._met and self._clock.monotonic() >= self._alone_at

    def depart(self) -> None:
        """Say farewell: we go, and this is no broken connection."""
        if self.connected:
            self._transport.publish(self._presence.topic, self._presence.farewell())

    def restate(self, within_s: float = 0.0) -> None:
        """Publish the birth again, at a random moment within ``within_s`` seconds."""
        self._birth_at = self._clock.monotonic() + self._chance.uniform(0.0, within_s)

    def tell(self, event: DeviceEvent) -> None:
        """Report something, if connected; nothing depends on its arrival."""
        self._transport.publish(self._topics.event(self._device), event.pack())
        crash_point("agent.event")

    def meet(self, coordinator: CoordinatorPresence, *, retained: bool, spread_s: float) -> float | None:
        """Take the coordinator's presence. If it cannot have heard us, restate, and return the seconds
        within which all else should be said again."""
        if coordinator.challenge:
            return None
        # What is retained may be its last word before it ended; a first live word says that it came now.
        unheard = not retained if not self._met else coordinator.session != self._session
        self._session, self._met = coordinator.session, True
        if not unheard:
            return None
        spread = max(spread_s, LEAST_SPREAD_S)
        self.restate(spread)
        if self._get_at is not None:
            self._ask_in(FIRST_GET_S)
        return spread

    def manifest_arrived(self, *, news: bool) -> None:
        """There is no need to ask for it. One that is no ``news`` leaves the patience as it has grown: a
        device that misses something must not ask for the same manifest every ten seconds."""
        self._get_at = None
        if news:
            self._get_delay = FIRST_GET_S

    def work(self, *, without_task: bool, lost_task: bool) -> float:
        """Say what is due; seconds until more is. ``without_task``: the gates are shut for long;
        ``lost_task``: the manifest at hand cannot be acted on, perhaps there is another."""
        if not self.connected:
            return LONGEST_SLEEP_S
        says_nothing = self._met and self._birth_at is None and self._get_at is None
        if says_nothing and without_task == self._left and not lost_task:
            return LONGEST_SLEEP_S
        now = self._clock.monotonic()
        if self._birth_at is not None and now >= self._birth_at:
            sent = self._transport.publish(self._presence.topic, self._birth())
            crash_point("agent.birth")
            self._birth_at = None if sent is not None else now + REPEAT_S
        if without_task != self._left:
            self._left = without_task
            change = self._transport.unsubscribe if without_task else self._transport.subscribe
            change([self._topics.task(self._task)])
        if self._get_at is None and lost_task:
            self._ask_in(self._get_delay)
        if self._get_at is not None and now >= self._get_at and not without_task:
            self._transport.publish(self._topics.get(self._device), GetRequest().pack())
            crash_point("agent.get")
            self._ask_in(min(2.0 * self._get_delay, LONGEST_GET_S))
        alone_at = None if self._met or now >= self._alone_at else self._alone_at
        asks = (self._birth_at, None if without_task else self._get_at, alone_at)
        return max(min((at - now for at in asks if at is not None), default=LONGEST_SLEEP_S), 0.0)

    def _ask_in(self, delay: float) -> None:
        self._get_delay = delay
        self._get_at = self._clock.monotonic() + delay * self._chance.uniform(1.0, 1.5)
