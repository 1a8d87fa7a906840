"""Rows that a model is checked with hold numbers that it can look up, whatever it does to them first."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from models.build import build_artifact
from models.build.drawn_rows import draw_rows

_SPEC = importlib.util.spec_from_file_location("forward", Path(__file__).parent / "forward.py")
forward = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(forward)
network, w, i64 = forward.network, forward.w, forward.i64

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
LOOK_UP = [
    ("Gather", "table ids", "rows", {}),
    ("Flatten", "rows", "flat", {}),
    ("Gemm", "flat head", "z", {}),
]
MODELS = {
    "ids": ([("Identity", "x", "ids", {})], {}, INT64, (0, 11)),
    "ids counted from 1": ([("Sub", "x one", "ids", {})], {"one": i64(1)}, INT64, (1, 12)),
    "fields of one table": (
        [("Add", "x at", "ids", {})],
        {"at": i64(0, 4, 8)},
        INT64,
        (0, 3),
    ),
    "ids among numbers": ([("Cast", "x", "ids", {"to": INT64})], {}, FLOAT, (0, 4)),
}


@pytest.mark.parametrize("case", MODELS)
def test_ids_are_in_the_table(case):
    """A model of a table of 12 is built for every runtime, and its ids are drawn from all there are."""
    nodes, tensors, kind, (least, most) = MODELS[case]
    tensors = {"table": w(12, 4), "head": w(12, 3), **tensors}
    model = network([3], [*nodes, *LOOK_UP], tensors, kind=kind)
    artifact = build_artifact(model, loss="softmax_cross_entropy", runtimes=("onnx", "tflite"))
    x = draw_rows(artifact, np.random.PCG64(1), 200)
    assert (x.min(), x.max()) == (least, most)


def test_ids_that_become_a_one_of_n_are_not_negative():
    """A runtime may count them from the end, or not at all."""
    nodes = [
        ("Cast", "x", "ids", {"to": INT64}),
        ("OneHot", "ids depth values", "ones", {}),
        ("Flatten", "ones", "flat", {}),
        ("Gemm", "flat head", "z", {}),
    ]
    tensors = {"depth": np.array(4), "values": np.array([0, 1], np.float32), "head": w(12, 3)}
    model = network([3], nodes, tensors)
    artifact = build_artifact(model, loss="softmax_cross_entropy", parameters=["head"])
    x = draw_rows(artifact, np.random.PCG64(1), 200)
    assert (x.min(), x.max()) == (0, 3)


def test_numbers_are_of_both_signs_where_nothing_is_looked_up():
    """So that every side of a ReLU is met."""
    artifact = build_artifact(network([3], [("Gemm", "x head", "z", {})], {"head": w(3, 3)}), loss="mse")
    x = draw_rows(artifact, np.random.PCG64(1), 200)
    assert (x.min(), x.max()) == (-2, 1.875)
    np.testing.assert_array_equal(x, np.rint(x * 8) / 8)
