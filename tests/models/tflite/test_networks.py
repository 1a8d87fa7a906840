"""Whole networks: what is built for TFLite trains on LiteRT as it trains elsewhere."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.build.losses import LOSSES
from models.build.optimizers import OPTIMIZERS
from models.runtime import RUNTIMES, Batch, split_flat, try_runtime, zero_slots
from models.zoo.mlp import mlp


def network(nodes, x, weights):
    """A forward graph ``x -> logits`` of three classes; weights are drawn, off zero."""
    draw = np.random.default_rng(2)
    constants = [
        numpy_helper.from_array((draw.standard_normal(shape) / 3).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def cnn():
    """A strided convolution, max pooling, a depthwise one with a dilation, average pooling."""
    node = helper.make_node
    return network(
        [
            node("Conv", ["x", "c1.w", "c1.b"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["c", "c2.w", "c2.b"], ["d"], group=4, pads=[1, 1, 1, 1]),
            node("Tanh", ["d"], ["e"]),
            node("AveragePool", ["e"], ["f"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["f"], ["g"]),
            node("Gemm", ["g", "head.w", "head.b"], ["logits"], transB=1),
        ],
        (2, 16, 16),
        {
            "c1.w": (4, 2, 3, 3),
            "c1.b": (4,),
            "c2.w": (4, 1, 3, 3),
            "c2.b": (4,),
            "head.w": (3, 16),
            "head.b": (3,),
        },
    )


def temporal():
    """A convolution in one dimension, as for accelerometer windows."""
    node = helper.make_node
    return network(
        [
            node("Conv", ["x", "c1.w", "c1.b"], ["a"], strides=[2], pads=[2, 2]),
            node("Tanh", ["a"], ["b"]),
            node("Conv", ["b", "c2.w", "c2.b"], ["c"], group=6, pads=[1, 1]),
            node("Sigmoid", ["c"], ["d"]),
            node("Flatten", ["d"], ["e"]),
            node("Gemm", ["e", "head.w", "head.b"], ["logits"], transB=1),
        ],
        (3, 20),
        {
            "c1.w": (6, 3, 5),
            "c1.b": (6,),
            "c2.w": (6, 1, 3),
            "c2.b": (6,),
            "head.w": (3, 60),
            "head.b": (3,),
        },
    )


@pytest.mark.parametrize("source", [cnn, temporal])
def test_a_network_trains_on_litert_as_in_numpy(source, installed):
    """The golden steps, and ten steps with momentum, clipping and FedProx within 1e-5."""
    installed("litert")
    artifact = build_artifact(source(), loss="softmax_cross_entropy", runtimes=("onnx", "tflite"))
    trial = try_runtime("litert", artifact)
    assert trial.reason == ""
    assert trial.deviation < 1e-5
    sessions = {name: RUNTIMES[name].open(artifact) for name in ("litert", "numpy")}
    start = split_flat(artifact.initial_weights(), artifact.layout)
    states = {name: (start, zero_slots(artifact)) for name in sessions}
    draw = np.random.default_rng(9)
    hyper = {"lr": 0.1, "momentum": 0.9, "mu": 0.01, "clip": 1.0}
    for count in range(11, 21):
        batch = Batch(
            x=draw.standard_normal((count, *artifact.manifest.inputs[0].shape[1:])).astype(np.float32),
            y=draw.integers(0, 3, count).astype(np.int32),
            sample_weight=draw.choice(np.array([0, 0.5, 1, 2], np.float32), count),
        )
        results = {
            name: session.step(*states[name], batch, hyper, start) for name, session in sessions.items()
        }
        assert results["litert"].sums == pytest.approx(results["numpy"].sums, rel=1e-5, abs=1e-5)
        states = {name: (result.weights, result.slots) for name, result in results.items()}
    for name, array in states["numpy"][0].items():
        np.testing.assert_allclose(states["litert"][0][name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_loss_and_optimizer_runs_on_litert(loss, optimizer, installed):
    """Each with its own metrics and slots, a counter of steps that is a scalar included."""
    installed("litert")
    artifact = build_artifact(mlp((6, 8, 3)), loss=loss, optimizer=optimizer, runtimes=("onnx", "tflite"))
    trial = try_runtime("litert", artifact)
    assert trial.reason == ""
    assert trial.deviation < 1e-5


def test_the_onnx_graphs_are_the_same_with_and_without(small_artifact):
    """What is built beside them changes nothing in them; without being asked for there is nothing."""
    plain = build_artifact(mlp((5, 7, 3), seed=4, name="small"), loss="softmax_cross_entropy")
    for name in plain.manifest.files:
        assert plain.read(name) == small_artifact.read(name)
    assert small_artifact.manifest.files.keys() - plain.manifest.files.keys() == {
        "step.tflite",
        "eval.tflite",
        "infer.tflite",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtimes": ("tflite",)}, "tflite alone"),
        ({"runtimes": ("onnx", "coreml")}, "coreml"),
        ({"runtimes": ("onnx", "tflite"), "batch": 4}, "4 rows"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    """Before anything is computed for long."""
    with pytest.raises(ArtifactError, match=words):
        build_artifact(mlp((4, 3)), loss="softmax_cross_entropy", **options)
