"""Cleaning up: what is computed for nothing or twice goes, and the numbers stay."""

import numpy as np
import pytest
from onnx import helper

from models.build.cleanup import clean, finished
from models.build.graph import BATCH, WorkingGraph
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model


def neutral(g, x):
    """x * 1 + 0"""
    return g.op("Add", g.op("Mul", x, g.constant(np.ones((1, 6)))), g.constant(0))


def one_that_widens(g, x):
    """A factor of ones that repeats its operand does something."""
    return g.op("Mul", g.op("ReduceSum", x, g.integers(1), keepdims=1), g.constant(np.ones((1, 6))))


def views(g, x):
    """One Reshape after another"""
    folded = g.op("Reshape", g.op("Unsqueeze", x, g.integers(1)), g.integers(0, 2, 3))
    return g.op("Neg", g.op("Reshape", folded, g.integers(0, 3, 2)))


def views_there_and_back(g, x):
    """A Reshape that ends where it began"""
    return g.op("Neg", g.op("Reshape", g.op("Reshape", x, g.integers(0, 2, 3)), g.integers(0, 6)))


def copied_size_of_another(g, x):
    """A size that is copied from a shape in between stays what it is."""
    middle = g.op("Reshape", x, g.integers(0, 2, 3))
    return g.op("Neg", g.op("Reshape", middle, g.integers(0, 0, 1, 3)))


def transposes(g, x):
    """Turned and turned again"""
    cube = g.op("Reshape", x, g.integers(0, 2, 3))
    return g.op("Transpose", g.op("Transpose", cube, perm=[1, 2, 0]), perm=[2, 0, 1])


def transposes_to_another(g, x):
    """Turned twice to a third order"""
    cube = g.op("Reshape", x, g.integers(0, 2, 3))
    return g.op("Transpose", g.op("Transpose", cube, perm=[1, 2, 0]), perm=[1, 0, 2])


def expand_late(g, x):
    """Arithmetic with a number on what was repeated, then a broadcast"""
    total = g.op("ReduceSum", x, g.integers(1), keepdims=1)
    spread = g.op("Expand", total, g.op("Shape", x))
    return g.op("Mul", x, g.op("Neg", g.op("Div", spread, g.constant(3))))


def expand_that_is_needed(g, x):
    """Nothing else is as large"""
    total = g.op("ReduceSum", x, g.integers(1), keepdims=1)
    return g.op("Neg", g.op("Expand", total, g.op("Shape", x)))


CASES = [
    (neutral, ["Identity"]),
    (one_that_widens, ["Mul", "ReduceSum"]),
    (views, ["Neg", "Reshape"]),
    (views_there_and_back, ["Neg"]),
    (copied_size_of_another, ["Neg", "Reshape", "Reshape"]),
    (transposes, ["Reshape"]),
    (transposes_to_another, ["Reshape", "Transpose"]),
    (expand_late, ["Div", "Mul", "Neg", "ReduceSum"]),
    (expand_that_is_needed, ["Expand", "Neg", "ReduceSum", "Shape"]),
]


@pytest.mark.parametrize(("make", "wanted"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_what_is_left_computes_the_same(make, wanted):
    """The operators that remain, and their numbers."""
    graph = WorkingGraph()
    value = make(graph, graph.input("x", (BATCH, 6)))
    before = read_model(graph.copy().finish("g", ["x"], {"o": value}))
    after = read_model(finished(graph, "g", ["x"], {"o": value}))
    assert sorted(node.op for node in after.nodes) == wanted
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    outputs = [NumpyGraph(it)({"x": x})["o"] for it in (before, after)]
    np.testing.assert_allclose(*outputs, rtol=1e-6)


def test_equal_nodes_are_computed_once():
    """Nodes of an exporter are not told apart by their names."""
    graph = WorkingGraph()
    x = graph.input("x", (BATCH, 6))
    once, twice = graph.op("Exp", x), "fwd.same"
    graph.nodes.append(helper.make_node("Exp", [x], [twice], name="fwd.another"))
    graph.infer()
    values = clean(graph, [once, twice])
    assert [node.op_type for node in graph.nodes] == ["Exp"]
    assert values == {once: once, twice: once}


def test_two_outputs_of_one_value_are_both_there():
    """Cleaning may find that two outputs are the same."""
    graph = WorkingGraph()
    x = graph.input("x", (BATCH, 6))
    doubled = graph.op("Add", x, x)
    outputs = {"a": doubled, "b": graph.op("Mul", doubled, graph.constant(1))}
    model = read_model(finished(graph, "g", ["x"], outputs))
    got = NumpyGraph(model)({"x": np.ones((1, 6), np.float32)})
    np.testing.assert_array_equal(got["a"], got["b"])
    assert got["a"].sum() == 12
