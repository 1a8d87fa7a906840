"""Layouts: the meaning of a flat vector, and its fingerprint."""

import pytest

from fl_protocol.errors import LayoutError
from fl_protocol.layout import MAX_TENSORS, TensorLayout


def test_tensors_follow_one_another():
    """Offsets are sums of sizes; a scalar has one element."""
    layout = TensorLayout.of([("w", (3, 4)), ("b", (4,)), ("s", ())])
    assert layout.size == 17
    assert [(tensor.name, start) for tensor, start in layout.offsets()] == [("w", 0), ("b", 12), ("s", 16)]


def test_the_fingerprint_tells_names_shapes_and_order_apart():
    """Whatever would give the numbers another meaning."""
    layouts = [
        [("w", (3, 4)), ("b", (4,))],
        [("b", (4,)), ("w", (3, 4))],
        [("w", (4, 3)), ("b", (4,))],
        [("w", (12,)), ("b", (4,))],
        [("v", (3, 4)), ("b", (4,))],
    ]
    assert len({TensorLayout.of(tensors).fingerprint for tensors in layouts}) == len(layouts)
    assert len(TensorLayout.of(layouts[0]).fingerprint) == 8


def test_buffers_stand_behind_the_weights():
    """They have a size of their own, and another fingerprint than weights of that name."""
    layout = TensorLayout.of([("w", (3, 4)), ("b", (4,)), ("mean", (4,), "buffer")])
    assert (layout.size, layout.weight_size, layout.buffer_size) == (20, 16, 4)
    assert layout.weights == TensorLayout.of([("w", (3, 4)), ("b", (4,))])
    assert layout.weights.weights is layout.weights
    assert layout.fingerprint != TensorLayout.of([("w", (3, 4)), ("b", (4,)), ("mean", (4,))]).fingerprint
    assert TensorLayout.of(layout.entries) == layout


def test_a_layout_without_buffers_keeps_its_fingerprint():
    """Whatever was built before there were buffers still fits."""
    assert TensorLayout.of([("w", (33, 40)), ("b", (7,))]).fingerprint.hex() == "455232198817eaa4"


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [("w", (3,)), ("w", (3,))],
        [("w", (0,))],
        [("w", (-1, -1))],
        [("w", (1 << 16, 1 << 16))],
        [(str(index), (1,)) for index in range(MAX_TENSORS + 1)],
        [("mean", (3,), "buffer")],
        [("mean", (3,), "buffer"), ("w", (3,))],
        [("w", (3,)), ("mean", (3,), "statistic")],
    ],
)
def test_a_layout_without_meaning_is_refused(tensors):
    """Nothing, twice the same, empty, too large, no weight, a weight behind a buffer, an unknown kind."""
    with pytest.raises(LayoutError):
        TensorLayout.of(tensors)
