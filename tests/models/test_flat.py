"""Flat vector and named tensors."""

import numpy as np
import pytest

from fl_protocol.errors import LayoutError
from fl_protocol.layout import TensorLayout
from models.runtime import join_flat, split_flat

LAYOUT = TensorLayout.of([("a", (2, 3)), ("scale", ()), ("b", (4,))])


def test_splitting_and_joining_gives_the_vector_back():
    """The two are inverse, in wire order, a scalar included."""
    flat = np.arange(11, dtype=np.float32)
    tensors = split_flat(flat, LAYOUT)
    assert list(tensors) == ["a", "scale", "b"]
    assert tensors["a"].shape == (2, 3)
    assert tensors["scale"] == 6
    np.testing.assert_array_equal(join_flat(tensors, LAYOUT), flat)


def test_splitting_copies_nothing():
    """A device holds a model once: the tensors are views."""
    flat = np.zeros(11, np.float32)
    assert all(np.shares_memory(tensor, flat) for tensor in split_flat(flat, LAYOUT).values())


def test_a_vector_of_another_length_is_refused():
    """A vector that is not the layout's would be read as garbage."""
    with pytest.raises(LayoutError, match="11 parameters"):
        split_flat(np.zeros(12, np.float32), LAYOUT)


@pytest.mark.parametrize(
    ("change", "words"), [({"a": np.zeros((3, 2))}, "of shape"), ({"b": None}, "missing")]
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, words):
    """The error names the tensor and says what is wrong with it."""
    tensors = {**split_flat(np.zeros(11, np.float32), LAYOUT), **change}
    with pytest.raises(LayoutError, match=words):
        join_flat({name: tensor for name, tensor in tensors.items() if tensor is not None}, LAYOUT)
