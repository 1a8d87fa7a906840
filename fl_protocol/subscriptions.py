"""Who subscribed to what: MQTT's filters as a tree of levels, so that a message costs its receivers alone."""

from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Subscriptions", "matches"]

S = TypeVar("S")


class _Level(Generic[S]):
    __slots__ = ("below", "here")

    def __init__(self) -> None:
        self.below: dict[str, _Level[S]] = {}
        self.here: dict[S, None] = {}


class Subscriptions(Generic[S]):
    """Filters with ``+`` and ``#`` (MQTT 3.1.1, section 4.7) of any number of subscribers.

    Those without are looked up whole: most are, and a device's own take two levels of the tree each.
    """

    def __init__(self) -> None:
        self._root: _Level[S] = _Level()
        self._exact: dict[str, dict[S, None]] = {}

    def add(self, pattern: str, subscriber: S) -> None:
        """Subscribe; once more changes nothing."""
        if not _is_wild(pattern):
            subscribers = self._exact.get(pattern)
            if subscribers is None:
                subscribers = self._exact[pattern] = {}
            subscribers[subscriber] = None
            return
        level = self._root
        for word in pattern.split("/"):
            below = level.below.get(word)
            if below is None:
                below = level.below[word] = _Level()
            level = below
        level.here[subscriber] = None

    def remove(self, pattern: str, subscriber: S) -> None:
        """Unsubscribe, if it was subscribed; nothing stays of a filter that nobody has."""
        if not _is_wild(pattern):
            subscribers = self._exact.get(pattern)
            if subscribers is not None:
                subscribers.pop(subscriber, None)
                if not subscribers:
                    del self._exact[pattern]
            return
        path = [(self._root, "")]
        for word in pattern.split("/"):
            below = path[-1][0].below.get(word)
            if below is None:
                return
            path.append((below, word))
        path[-1][0].here.pop(subscriber, None)
        for (above, _), (level, word) in zip(path[-2::-1], path[:0:-1], strict=True):
            if level.here or level.below:
                return
            del above.below[word]

    def of(self, topic: str) -> list[S]:
        """Who gets a message on ``topic``, each once."""
        found = dict(self._exact.get(topic, ()))
        for level in self._levels(topic.split("/")):
            found.update(level.here)
        return list(found)

    def _levels(self, words: list[str]) -> Iterator[_Level[S]]:
        """All levels at which a filter for these words ends."""
        levels = [self._root]
        for word in words:
            further = []
            for level in levels:
                below = level.below
                if (rest := below.get("#")) is not None:
                    yield rest
                if (any_word := below.get("+")) is not None:
                    further.append(any_word)
                if (this := below.get(word)) is not None:
                    further.append(this)
            levels = further
        for level in levels:
            yield level
            if (rest := level.below.get("#")) is not None:
                yield rest


def _is_wild(pattern: str) -> bool:
    return "+" in pattern or "#" in pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether one filter matches a topic."""
    want, have = pattern.split("/"), topic.split("/")
    for index, level in enumerate(want):
        if level == "#":
            return True
        if index >= len(have) or level not in ("+", have[index]):
            return False
    return len(want) == len(have)
