"""Every lowering against ONNX Runtime, from one table: composites in primitives compute the same.

A case is an operator, its inputs (arrays; ``Fixed`` is a constant, ``None`` left out), attributes, and how
many outputs it has. Gradients need no case here: a lowered node has those of its primitives.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import helper, numpy_helper

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph
from models.build.lower import LOWERINGS, lower
from models.build.rules import RULES
from models.runtime.numpy_ops import KERNELS
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model

DRAW = np.random.default_rng(11)


@dataclass(frozen=True)
class Fixed:
    """An input that is a constant."""

    array: np.ndarray


def f(*shape):
    """Normal float32 numbers."""
    return DRAW.standard_normal(shape).astype(np.float32)


def positive(*shape):
    """float32 numbers from 0.5 to 2."""
    return DRAW.uniform(0.5, 2, shape).astype(np.float32)


def i64(*values):
    """A constant int64[n]."""
    return Fixed(np.array(values, np.int64))


def scales(*values):
    """A constant float32[n]."""
    return Fixed(np.array(values, np.float32))


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
ONE, TWO, THREE = Fixed(np.float32(1)), Fixed(np.int64(2)), Fixed(np.float32(3))

CASES = [
    ("AveragePool", [f(2, 3, 7)], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, 1),
    ("AveragePool", [f(2, 3, 6, 5)], {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER"}, 1),
    ("AveragePool", [f(2, 3, 6)], {"kernel_shape": [2], "pads": [1, 0], "count_include_pad": 1}, 1),
    ("AveragePool", [f(2, 3, 6)], {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}, 1),
    ("BatchNormalization", [f(2, 3, 4, 4), f(3), f(3), f(3), positive(3)], {"epsilon": 1e-3}, 1),
    ("BatchNormalization", [f(2, 3), f(3), f(3), f(3), positive(3)], {}, 1),
    ("Cast", [f(2, 3)], {"to": 1}, 1),
    ("CastLike", [f(2, 3), f(1)], {}, 1),
    ("Celu", [f(3, 4)], {"alpha": 0.7}, 1),
    ("Constant", [], {"value": numpy_helper.from_array(f(2, 3))}, 1),
    ("Conv", [f(2, 3, 7, 6), f(4, 3, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, 1),
    ("Conv", [f(2, 3, 8), f(4, 3, 4), f(4)], {"auto_pad": "SAME_LOWER", "strides": [3]}, 1),
    ("Conv", [f(2, 3, 8), f(4, 3, 4)], {"auto_pad": "VALID"}, 1),
    ("ConvTranspose", [f(1, 2, 4), f(2, 3, 3)], {"strides": [2], "auto_pad": "SAME_UPPER"}, 1),
    ("ConvTranspose", [f(1, 2, 4), f(2, 3, 3)], {"strides": [2], "output_shape": [8]}, 1),
    ("Einsum", [f(2, 3, 4), f(4, 2, 5)], {"equation": "abc,cde->abde"}, 1),
    ("Einsum", [f(2, 3, 2, 4), f(2, 5, 2, 4)], {"equation": "aecd,abcd->acbe"}, 1),
    ("Einsum", [f(2, 3, 4), f(3, 4, 5)], {"equation": "abc,bcd->ad"}, 1),
    ("Einsum", [f(4), f(2, 3)], {"equation": "c,ab->cba"}, 1),
    ("Einsum", [f(2, 3, 4), f(2, 6)], {"equation": "abc, ad -> db"}, 1),
    ("Elu", [f(3, 4)], {"alpha": 0.7}, 1),
    ("Flatten", [f(2, 3, 4)], {"axis": 1}, 1),
    ("GRU", [f(4, 2, 3), f(1, 15, 3), f(1, 15, 5)], {"hidden_size": 5}, 2),
    (
        "GRU",
        [f(4, 2, 3), f(1, 15, 3), f(1, 15, 5), f(1, 30)],
        {"hidden_size": 5, "linear_before_reset": 1},
        2,
    ),
    (
        "GRU",
        [f(3, 2, 3), f(2, 15, 3), f(2, 15, 5), f(2, 30), None, f(2, 2, 5)],
        {"hidden_size": 5, "direction": "bidirectional", "linear_before_reset": 1},
        2,
    ),
    ("GRU", [f(3, 2, 3), f(1, 15, 3), f(1, 15, 5), f(1, 30), None, f(1, 2, 5)], {"hidden_size": 5}, 2),
    ("Gather", [f(4, 5), Fixed(np.array(-1, np.int64))], {"axis": 1}, 1),
    ("Gather", [f(4, 5), i64(1, 2, 3)], {"axis": 1}, 1),
    ("Gather", [f(4, 5), i64(3, 0)], {"axis": 0}, 1),
    ("GatherElements", [Fixed(f(1, 6)), Fixed(np.array([[5, 0, 3]]))], {"axis": 1}, 1),
    ("GlobalAveragePool", [f(2, 3, 4, 5)], {}, 1),
    ("GlobalMaxPool", [f(2, 3, 4, 5)], {}, 1),
    ("HardSigmoid", [f(3, 4) * 4], {"alpha": 0.3, "beta": 0.4}, 1),
    ("HardSwish", [f(3, 4) * 4], {}, 1),
    ("Identity", [f(3)], {}, 1),
    ("InstanceNormalization", [f(2, 3, 5), f(3), f(3)], {"epsilon": 1e-3}, 1),
    ("InstanceNormalization", [f(2, 3, 5), scales(1, 1, 1), scales(0, 0, 0)], {}, 1),
    ("LSTM", [f(4, 2, 3), f(1, 20, 3), f(1, 20, 5)], {"hidden_size": 5}, 3),
    ("LSTM", [f(4, 2, 3), f(1, 20, 3), f(1, 20, 5), f(1, 40)], {"hidden_size": 5, "direction": "reverse"}, 3),
    (
        "LSTM",
        [f(3, 2, 3), f(2, 20, 3), f(2, 20, 5), f(2, 40), None, f(2, 2, 5), f(2, 2, 5)],
        {"hidden_size": 5, "direction": "bidirectional"},
        3,
    ),
    ("LayerNormalization", [f(2, 3, 4), f(4), f(4)], {"axis": -1, "epsilon": 1e-3}, 1),
    ("LayerNormalization", [f(2, 3, 4), f(3, 4)], {"axis": 1}, 1),
    ("Max", [f(2, 3), f(3), f(1)], {}, 1),
    ("MaxPool", [f(2, 3, 7, 6)], {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 1]}, 1),
    ("MaxPool", [f(2, 3, 8)], {"kernel_shape": [3], "strides": [2], "ceil_mode": 1, "pads": [1, 1]}, 1),
    ("MaxPool", [f(2, 3, 5)], {"kernel_shape": [1], "strides": [3], "ceil_mode": 1}, 1),
    ("Min", [f(2, 3), f(3), f(1)], {}, 1),
    ("Mish", [f(3, 4)], {}, 1),
    ("PRelu", [f(2, 3, 4), f(3, 1)], {}, 1),
    ("Pow", [f(3, 4), TWO], {}, 1),
    ("Pow", [f(3, 4), THREE], {}, 1),
    ("Pow", [positive(3, 4), scales(-1)], {}, 1),
    ("Pow", [positive(3, 4), scales(0.5)], {}, 1),
    ("Pow", [f(3, 4), ONE], {}, 1),
    ("Pow", [positive(3, 4), Fixed(np.array(5, np.int64))], {}, 1),
    ("RNN", [f(4, 2, 3), f(1, 5, 3), f(1, 5, 5), f(1, 10)], {"hidden_size": 5}, 2),
    ("ReduceL1", [f(2, 3, 4), i64(1)], {}, 1),
    ("ReduceL2", [f(2, 3, 4), i64(1, -1)], {"keepdims": 0}, 1),
    ("ReduceMin", [f(2, 3, 4), i64(1)], {}, 1),
    ("ReduceSumSquare", [f(2, 3, 4)], {"keepdims": 0}, 1),
    ("Reshape", [f(2, 6), i64(0, -1, 2)], {}, 1),
    ("Resize", [f(2, 3, 2, 2), None, scales(1, 1, 2, 3)], {"mode": "nearest"}, 1),
    ("Resize", [f(2, 3, 2, 2), None, None, i64(2, 3, 4, 6)], NEAREST, 1),
    ("Selu", [f(3, 4)], {}, 1),
    ("Slice", [f(2, 6), i64(0, 0), i64(1 << 40, 6)], {}, 1),
    ("Slice", [f(2, 6), i64(0, 1), i64(1 << 40, 6)], {}, 1),
    ("Softplus", [f(3, 4) * 9], {}, 1),
    ("Softsign", [f(3, 4)], {}, 1),
    ("Split", [f(2, 6), i64(1, 2, 3)], {"axis": 1}, 3),
    ("Split", [f(2, 7)], {"axis": -1, "num_outputs": 3}, 3),
]


NEWER = [
    ("Gelu", [f(3, 4)], {}, 20),
    ("Gelu", [f(3, 4)], {"approximate": "tanh"}, 20),
    ("GroupNormalization", [f(2, 4, 3, 2), f(4), f(4)], {"num_groups": 2, "epsilon": 1e-3}, 21),
    ("GroupNormalization", [f(2, 4), f(4), f(4)], {"num_groups": 2}, 21),
]
"""Operators of later operator sets than ours; the last entry is theirs."""


def model_of(op, inputs, attributes, outputs):
    """One node, and what to feed it."""
    names = [f"i{at}" if entry is not None else "" for at, entry in enumerate(inputs)]
    pairs = list(zip(names, inputs, strict=True))
    feeds = {k: v for k, v in pairs if isinstance(v, np.ndarray)}
    constants = [numpy_helper.from_array(np.asarray(v.array), k) for k, v in pairs if isinstance(v, Fixed)]
    results = [f"o{at}" for at in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, name="node", **attributes)],
        "g",
        [helper.make_tensor_value_info(k, 1, v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(k, 1, None) for k in results],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), feeds


def lowered(model, feeds):
    """The model's outputs, by primitives in the numpy runtime."""
    graph = WorkingGraph()
    for name, array in feeds.items():
        graph.input(name, array.shape)
    for tensor in model.graph.initializer:
        graph.constants[tensor.name] = numpy_helper.to_array(tensor)
    graph.nodes.extend(model.graph.node)
    results = [value.name for value in model.graph.output]
    one = graph.constant(1)
    for name in results:  # a node of ours behind each output, for that is what lowering redirects
        graph.nodes.append(helper.make_node("Mul", [name, one], [f"{name}.value"], name=f"{name}.value"))
    values = {f"{name}.out": f"{name}.value" for name in results}
    values[f"{results[0]}.out"] = lower(graph, f"{results[0]}.value")
    content = graph.finish("g", list(feeds), values)
    read = read_model(content)
    assert {node.op for node in read.nodes} <= RULES.keys() & KERNELS.keys()
    return NumpyGraph(read)(feeds)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "outputs"), CASES, ids=[f"{case[0]}-{at}" for at, case in enumerate(CASES)]
)
def test_a_lowering_computes_what_the_operator_does(op, inputs, attributes, outputs):
    """All outputs, within float32's rounding."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, feeds = model_of(op, inputs, attributes, outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    got = lowered(model, feeds)
    for (name, value), wanted in zip(got.items(), expected, strict=True):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset"), NEWER, ids=[f"{case[0]}-{at}" for at, case in enumerate(NEWER)]
)
def test_an_operator_of_a_later_set_is_lowered_to_ours(op, inputs, attributes, opset):
    """An exporter's newer operator set is no obstacle."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, feeds = model_of(op, inputs, attributes, 1)
    model.opset_import[0].version = opset
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    np.testing.assert_allclose(lowered(model, feeds)["o0.out"], expected, rtol=1e-5, atol=2e-6)


def test_every_lowering_has_a_case():
    """A lowering that nobody compared is a lowering that may be wrong."""
    assert {op for op, *_ in CASES + NEWER} | COMPARISONS | SEQUENCES == set(LOWERINGS)


COMPARISONS = {"GreaterOrEqual", "LessOrEqual"}
SEQUENCES = {"SequenceAt"}


@pytest.mark.parametrize(
    ("given", "attributes", "place", "wanted"),
    [
        (np.array(2), {"axis": 1}, 0, np.s_[:, 0:2]),
        (np.array(2), {"axis": -1}, 2, np.s_[:, 4:5]),
        (np.array(2), {"axis": 1}, -1, np.s_[:, 4:5]),
        (np.array([1, 3, 1]), {"axis": 1}, 1, np.s_[:, 1:4]),
        (None, {"axis": 1, "keepdims": 0}, 3, np.s_[:, 3]),
    ],
)
def test_a_piece_of_a_split_sequence_is_a_slice(given, attributes, place, wanted):
    """As PyTorch exports ``chunk`` and ``split``: even pieces, given ones, single ones."""
    graph = WorkingGraph()
    graph.input("x", (2, 5))
    pieces = ["x"] if given is None else ["x", graph.constant(given, np.int64)]
    graph.nodes.append(helper.make_node("SplitToSequence", pieces, ["s"], name="split", **attributes))
    graph.nodes.append(
        helper.make_node("SequenceAt", ["s", graph.constant(place, np.int64)], ["o"], name="at")
    )
    value = lower(graph, "o")
    x = f(2, 5)
    got = NumpyGraph(read_model(graph.finish("g", ["x"], {"out": value})))({"x": x})["out"]
    np.testing.assert_array_equal(got, x[wanted])


@pytest.mark.parametrize("op", sorted(COMPARISONS))
def test_comparisons_are_the_negation_of_their_opposites(op):
    """Truth values, which a gradient never passes."""
    graph = WorkingGraph()
    for name in ("a", "b"):
        graph.input(name, (5,))
    graph.nodes.append(helper.make_node(op, ["a", "b"], ["o"], name="node"))
    value = lower(graph, "o")
    feeds = {"a": np.arange(5, dtype=np.float32), "b": np.full(5, 2, np.float32)}
    got = NumpyGraph(read_model(graph.finish("g", ["a", "b"], {"o": value})))(feeds)["o"]
    wanted = feeds["a"] >= 2 if op == "GreaterOrEqual" else feeds["a"] <= 2
    np.testing.assert_array_equal(got, wanted)


REFUSED = [
    (
        "AveragePool",
        [f(1, 1, 9)],
        {"kernel_shape": [2], "ceil_mode": 1, "count_include_pad": 1, "pads": [1, 1]},
    ),
    ("GRU", [f(2, 2, 3), f(1, 15, 3), f(1, 15, 5)], {"hidden_size": 5, "clip": 1.0}),
    ("GRU", [f(257, 2, 3), f(1, 15, 3), f(1, 15, 5)], {"hidden_size": 5}),
    ("LSTM", [f(2, 2, 3), f(1, 20, 3), f(1, 20, 5)], {"hidden_size": 5, "input_forget": 1}),
    ("RNN", [f(2, 2, 3), f(1, 5, 3), f(1, 5, 5)], {"hidden_size": 5, "activations": ["Relu"]}),
    ("Resize", [f(1, 1, 2, 2), None, scales(1, 1, 1.5, 2)], {"mode": "nearest"}),
    ("Resize", [f(1, 1, 2, 2), None, scales(1, 1, 2, 2)], {"mode": "linear"}),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), REFUSED, ids=[f"{case[0]}-{at}" for at, case in enumerate(REFUSED)]
)
def test_a_use_that_training_cannot_follow_is_refused_by_node(op, inputs, attributes):
    """With the node's name and a remedy."""
    model, feeds = model_of(op, inputs, attributes, 1)
    with pytest.raises(ArtifactError, match=f"node 'node' .{op}.") as caught:
        lowered(model, feeds)
    assert caught.value.hint


def test_an_einsum_sums_over_a_letter_that_it_leaves_out():
    """Beside NumPy, for not every release of ONNX Runtime does it right."""
    x = f(2, 3, 4)
    model, feeds = model_of("Einsum", [x], {"equation": "abc->ca"}, 1)
    np.testing.assert_allclose(lowered(model, feeds)["o0.out"], np.einsum("abc->ca", x), rtol=1e-5, atol=2e-6)
