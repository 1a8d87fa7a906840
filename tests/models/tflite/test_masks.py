"""Comparisons of many numbers, which are written in arithmetic: truth, and nothing between."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.build.tflite import write_tflite

SHAPE = (64, 65)
CLOSE = np.float32(1) + np.finfo(np.float32).eps


def mask_graph(op, other):
    """A comparison of ``x`` with another input or a number, as 0 and 1."""
    names = ["x", "z"] if other is None else ["x", "c"]
    graph = helper.make_graph(
        [
            helper.make_node(op, names, ["truth"]),
            helper.make_node("Cast", ["truth"], ["mask"], to=TensorProto.FLOAT),
        ],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "z")],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, SHAPE)],
        [] if other is None else [numpy_helper.from_array(np.float32(other), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


@pytest.mark.parametrize("op", ["Equal", "Greater"])
@pytest.mark.parametrize("other", [None, 0, 1])
def test_a_mask_is_exact(op, other, interpret):
    """Neighbouring numbers, tiny and huge ones, and ties: what NumPy's comparison says."""
    draw = np.random.default_rng(2)
    extremes = np.array([0, -0.0, 1, CLOSE, -1, 1e-30, -1e-30, 3e38, -3e38, 1e20], np.float32)
    x, z = (draw.choice(extremes, SHAPE) for _ in range(2))
    content = write_tflite(mask_graph(op, other), signature="test", batch=1)
    right = z if other is None else np.float32(other)
    wanted = x == right if op == "Equal" else x > right
    np.testing.assert_array_equal(interpret(content, "test", {"x": x, "z": z})["mask"], wanted)
