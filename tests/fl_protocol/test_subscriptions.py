"""The tree of filters finds what comparing every filter finds."""

import itertools

from fl_protocol.subscriptions import Subscriptions, matches

PATTERNS = ["#", "a/#", "a/+", "a/b", "+/b", "a/+/c", "+/+/#", "a/b/c", "b", "+", "a/b/#"]
TOPICS = ["", "/a", "a/", "ab", "ab/c", "a", "b", "a/b", "a/c", "b/b", "a/b/c", "a/x/c", "a/b/c/d", "b/c/d"]


def test_everybody_who_matches_is_found_once():
    """Whatever they subscribed to, and however often."""
    tree = Subscriptions()
    for pattern in PATTERNS:
        tree.add(pattern, pattern)
        tree.add(pattern, pattern)
        tree.add(pattern, "all")
    for topic in TOPICS:
        wanted = {pattern for pattern in PATTERNS if matches(pattern, topic)}
        found = tree.of(topic)
        assert len(found) == len(set(found))
        assert set(found) == wanted | {"all"}


def test_nothing_is_left_of_those_who_went():
    """In whichever order they go; one that was not there may go too."""
    for order in itertools.islice(itertools.permutations(PATTERNS), 0, 5000, 499):
        tree = Subscriptions()
        for pattern in PATTERNS:
            tree.add(pattern, 1)
        for gone, pattern in enumerate(order, 1):
            tree.remove(pattern, 1)
            tree.remove(pattern, 2)
            left = set(order[gone:])
            for topic in TOPICS:
                assert bool(tree.of(topic)) == any(matches(one, topic) for one in left)
        assert not tree._root.below
