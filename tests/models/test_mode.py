"""The two modes of layers that train otherwise than they infer, against ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from models.build.graph import BATCH, WorkingGraph
from models.build.mode import MODES, in_mode
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model

DRAW = np.random.default_rng(17)
ROWS = 5


def f(*shape):
    """Normal float32 numbers."""
    return DRAW.standard_normal(shape).astype(np.float32)


def positive(*shape):
    """float32 numbers from 0.5 to 2."""
    return DRAW.uniform(0.5, 2, shape).astype(np.float32)


CASES = [
    ("BatchNormalization", [f(ROWS, 3), f(3), f(3), f(3), positive(3)], {}),
    ("BatchNormalization", [f(ROWS, 3, 4), f(3), f(3), f(3), positive(3)], {"epsilon": 0.1, "momentum": 0.7}),
    ("BatchNormalization", [f(ROWS, 3, 4, 2), f(3), f(3), f(3), positive(3)], {"momentum": 0.0}),
    ("Dropout", [f(ROWS, 3)], {}),
    ("Dropout", [f(ROWS, 3, 2)], {}),
]
IDS = [f"{op}-{at}" for at, (op, *_) in enumerate(CASES)]


def one_layer(op, inputs, attributes):
    """A lowered graph of one layer, its outputs, and what to feed it."""
    graph = WorkingGraph()
    feeds = {f"i{at}": array for at, array in enumerate(inputs)}
    for name, array in feeds.items():
        graph.input(name, [BATCH, *array.shape[1:]] if name == "i0" else array.shape)
    norm = op == "BatchNormalization"
    outputs = ["o", "mean", "variance"] if norm else ["o"]
    mode = {"training_mode": 1} if norm else {}
    graph.nodes.append(helper.make_node(op, list(feeds), outputs, name="layer", **attributes, **mode))
    graph.infer()
    return graph, outputs, feeds


def run(graph, values, feeds):
    """The values, in the numpy runtime."""
    given = {name: array for name, array in feeds.items() if name in graph.inputs}
    names = [f"out{at}" for at in range(len(values))]
    content = graph.finish("g", list(given), dict(zip(names, values, strict=True)))
    results = NumpyGraph(read_model(content))(given)
    return [results[name] for name in names]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=IDS)
def test_a_layer_infers_as_onnx_runtime_does(op, inputs, attributes):
    """And leaves its running statistics."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph, outputs, feeds = one_layer(op, inputs, attributes)
    layer = helper.make_graph(
        [helper.make_node(op, list(feeds), ["o"], **attributes)],
        "g",
        [helper.make_tensor_value_info(name, 1, array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info("o", 1, None)],
    )
    model = helper.make_model(layer, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result, *statistics = run(*in_mode(graph, outputs, training=False), feeds)
    np.testing.assert_allclose(result, session.run(None, feeds)[0], rtol=1e-5, atol=2e-6)
    for kept, given in zip(statistics, inputs[3:], strict=True):
        np.testing.assert_array_equal(kept, given)


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=IDS)
def test_a_layer_trains_otherwise_and_the_graph_it_came_from_stays(op, inputs, attributes):
    """Rows and seed come in besides; one lowered graph is the source of both modes."""
    graph, outputs, feeds = one_layer(op, inputs, attributes)
    before = [node.SerializeToString() for node in graph.nodes]
    feeds |= {"sample_weight": np.ones(ROWS, np.float32), "seed": np.array(1, np.float32)}
    trained, inferred = (run(*in_mode(graph, outputs, training=mode), feeds) for mode in (True, False))
    assert np.abs(trained[0] - inferred[0]).max() > 1e-3
    assert [node.SerializeToString() for node in graph.nodes] == before


def test_a_graph_without_such_layers_is_the_same_in_both_modes():
    """Nothing is made twice."""
    graph = WorkingGraph()
    value = graph.op("Tanh", graph.input("x", [BATCH, 3]))
    graph.infer()
    for training in (True, False):
        twin, (output,) = in_mode(graph, [value], training=training)
        assert (output, twin.nodes) == (value, graph.nodes)


def test_every_mode_has_a_case():
    """A mode that nobody compared is a mode that may be wrong."""
    assert {op for op, *_ in CASES} == set(MODES)
