"""What the tests of whole models share: forward graphs written by hand, and what each must pass.

``build_artifact`` itself checks each: the same outputs as the source in ONNX Runtime, gradients against
central differences, golden steps in every runtime.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models.build import build_artifact
from models.build.drawn_rows import draw_batch
from models.runtime import open_session, split_flat, zero_slots

CLASSES, NUMBERS, YES_OR_NO = "softmax_cross_entropy", "mse", "sigmoid_cross_entropy"
DRAW = np.random.default_rng(21)


def w(*shape, scale=None):
    """A weight of about unit gain."""
    fan_in = int(np.prod(shape[1:])) or 1
    return (DRAW.standard_normal(shape) * (scale or fan_in**-0.5)).astype(np.float32)


def zeros(*shape):
    """A bias."""
    return np.zeros(shape, np.float32)


def ones(*shape):
    """A scale."""
    return np.ones(shape, np.float32)


def i64(*values):
    """An int64 constant."""
    return np.array(values, np.int64)


def network(x, nodes, tensors, *, kind=TensorProto.FLOAT, opset=18, rank=2):
    """A forward model; a node is ``(op, inputs, outputs, attributes)``, names split at spaces."""
    made = [
        helper.make_node(op, ins.split(" ") if ins else [], outs.split(" "), name=f"{op}{at}", **attributes)
        for at, (op, ins, outs, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", kind, ["batch", *x])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def assert_builds_and_learns(model, loss, options):
    """Every gate passes, and thirty steps on one batch bring its loss down.

    By a fifth at least where rows are classified; numbers drawn at random cannot be rebuilt from less.
    """
    artifact = build_artifact(model, loss=loss, runtimes=("onnx", "tflite"), **options)
    session, skipped = open_session(artifact)
    assert skipped == [] or session.name != "onnx"
    weights = anchor = split_flat(artifact.initial_weights(), artifact.layout)
    slots, batch = zero_slots(artifact), draw_batch(artifact, np.random.PCG64(5), 8)
    losses = []
    for _ in range(30):
        result = session.step(weights, slots, batch, {"lr": 0.1, "momentum": 0.9, "clip": 1.0}, anchor)
        weights, slots = result.weights, result.slots
        losses.append(result.sums["loss"] / result.sums["weight"])
    assert losses[-1] < (0.8 if loss == CLASSES else 0.99) * losses[0], losses
