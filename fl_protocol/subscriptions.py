"""Who subscribed to what: MQTT's filters as a tree of levels, so that a message costs its receivers alone."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Subscriptions", "matches"]

S = TypeVar("S")


class _Level(Generic[S]):
    __slots__ = ("below", "here")

    def __init__(self) -> None:
        self.below: dict[str, _Level[S]] = {}
        self.here: dict[S, None] = {}


class _Whole(Generic[S]):
    """Who asked for a text: most texts have one subscriber, who is kept without a dictionary of its own."""

    __slots__ = ("_by_text",)

    def __init__(self) -> None:
        self._by_text: dict[str, S | dict[S, None]] = {}

    def add(self, text: str, subscriber: S) -> None:
        there = self._by_text.get(text)
        if there is None:
            self._by_text[text] = subscriber
        elif isinstance(there, dict):
            there[subscriber] = None
        elif there != subscriber:
            self._by_text[text] = {there: None, subscriber: None}

    def remove(self, text: str, subscriber: S) -> None:
        there = self._by_text.get(text)
        if isinstance(there, dict):
            there.pop(subscriber, None)
            if there:
                return
        elif there is None or there != subscriber:
            return
        del self._by_text[text]

    def of(self, text: str) -> Iterable[S]:
        there = self._by_text.get(text)
        if there is None:
            return ()
        return there if isinstance(there, dict) else (there,)


class Subscriptions(Generic[S]):
    """Filters with ``+`` and ``#`` (MQTT 3.1.1, section 4.7) of any number of subscribers, who are no
    dictionaries.

    Filters without a wildcard, and those whose last level alone is ``#``, are looked up whole: a device has
    no others, and each of them would take levels of the tree of its own.
    """

    def __init__(self) -> None:
        self._root: _Level[S] = _Level()
        self._exact: _Whole[S] = _Whole()
        self._under: _Whole[S] = _Whole()

    def add(self, pattern: str, subscriber: S) -> None:
        """Subscribe; once more changes nothing."""
        whole, text = self._place(pattern)
        if whole is not None:
            whole.add(text, subscriber)
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
        whole, text = self._place(pattern)
        if whole is not None:
            whole.remove(text, subscriber)
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
        found: list[S] = [*self._exact.of(topic)]
        above = topic
        while above:
            found += self._under.of(above)
            above = above.rpartition("/")[0]
        if self._root.below:
            for level in self._levels(topic.split("/")):
                found += level.here
        return found if len(found) < 2 else list(dict.fromkeys(found))

    def _place(self, pattern: str) -> tuple[_Whole[S] | None, str]:
        """Where a filter is looked up whole, and by what; None for one that belongs to the tree."""
        if not _is_wild(pattern):
            return self._exact, pattern
        above = _above(pattern)
        return (self._under, above) if above else (None, "")

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
            if not further:
                return
            levels = further
        for level in levels:
            yield level
            if (rest := level.below.get("#")) is not None:
                yield rest


def _is_wild(text: str) -> bool:
    return "+" in text or "#" in text


def _above(pattern: str) -> str:
    """What a filter names of a topic where its last level alone is a wildcard, ``#``; else empty."""
    above = pattern.removesuffix("/#")
    return "" if above == pattern or _is_wild(above) else above


def matches(pattern: str, topic: str) -> bool:
    """Whether one filter matches a topic."""
    if above := _above(pattern):
        return topic.startswith(above) and topic[len(above) : len(above) + 1] in ("", "/")
    want, have = pattern.split("/"), topic.split("/")
    for index, level in enumerate(want):
        if level == "#":
            return True
        if index >= len(have) or level not in ("+", have[index]):
            return False
    return len(want) == len(have)
