"""The interpreter: any graph in any valid order, nothing of a model's form in the code."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.runtime import TrainingArtifact
from models.runtime.numpy_runtime import NumpyGraph, NumpyRuntime
from models.runtime.onnx_reader import read_model
from models.zoo.mlp import mlp


@pytest.fixture(scope="module")
def deep_artifact():
    """Three hidden layers with tanh: a form that no code names."""
    return build_artifact(
        mlp((6, 9, 8, 7, 4), seed=2, name="deep", activation="Tanh"), loss="softmax_cross_entropy"
    )


def feeds_of(graph, draw):
    """Random arrays for every input of a graph, three rows."""
    feeds = {}
    for value in graph.inputs:
        shape = [3 if dim is None else dim for dim in value.shape]
        integer = value.dtype.kind == "i"
        array = draw.integers(0, 4, shape) if integer else draw.uniform(0.1, 1, shape)
        feeds[value.name] = np.asarray(array, value.dtype)
    return feeds


def permuted(model, draw):
    """The same model, its nodes in another valid order."""
    waiting, known = list(model.graph.node), {value.name for value in model.graph.input}
    known |= {tensor.name for tensor in model.graph.initializer}
    nodes = []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        chosen = ready[draw.integers(len(ready))]
        waiting.remove(chosen)
        nodes.append(chosen)
        known.update(chosen.output)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    return shuffled


@pytest.mark.parametrize("seed", range(5))
def test_a_deeper_graph_in_any_order_computes_the_same(deep_artifact, seed):
    """The step of another model, its nodes permuted, gives bit-equal results."""
    content, draw = deep_artifact.read("step.onnx"), np.random.default_rng(seed)
    graph = read_model(content)
    feeds = feeds_of(graph, np.random.default_rng(0))
    expected = NumpyGraph(graph)(feeds)
    shuffled = permuted(onnx.load_from_string(content), draw)
    assert [n.name for n in shuffled.graph.node] != [n.name for n in graph.nodes]
    got = NumpyGraph(read_model(shuffled.SerializeToString()))(feeds)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_inputs_are_never_changed(deep_artifact):
    """A step works on read-only arrays: weights may be views of the base version."""
    graph = read_model(deep_artifact.read("step.onnx"))
    feeds = feeds_of(graph, np.random.default_rng(0))
    for array in feeds.values():
        array.flags.writeable = False
    assert set(NumpyGraph(graph)(feeds)) == {value.name for value in graph.outputs}


def test_double_precision_runs_the_same_graph(deep_artifact):
    """float64 all the way, constants and casts included."""
    graph = read_model(deep_artifact.read("step.onnx"))
    outputs = NumpyGraph(graph, precision=np.float64)(feeds_of(graph, np.random.default_rng(0)))
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "needs the input 'x'"),
        ({"x": np.zeros((3, 7), np.float32)}, "'x' is float32"),
        ({"y": np.zeros(3, np.int64)}, "the graph wants int32"),
        ({"x": np.zeros((3, 6, 1), np.float32)}, "'x' is float32"),
        ({"sample_weight": np.zeros(5, np.float32)}, "node"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(deep_artifact, change, words):
    """Each input is checked by name before anything is computed; the rest names the node."""
    graph = read_model(deep_artifact.read("step.onnx"))
    feeds = {**feeds_of(graph, np.random.default_rng(0)), **change}
    with pytest.raises(ArtifactError, match=words):
        NumpyGraph(graph)({name: array for name, array in feeds.items() if array is not None})


A = helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])
B = helper.make_tensor_value_info("b", TensorProto.FLOAT, [2])


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([helper.make_node("Neg", ["c"], ["b"], name="n"), helper.make_node("Neg", ["a"], ["c"])], "before"),
        ([helper.make_node("Einsum", ["a"], ["b"], name="n", equation="i")], "no operator 'Einsum'"),
        ([helper.make_node("Neg", ["a"], ["a"], name="n")], "nothing else computes"),
        ([helper.make_node("Neg", ["a"], ["c"], name="n")], "nothing computes the output"),
    ],
)
def test_a_graph_that_cannot_run_is_refused_when_it_is_opened(nodes, words):
    """Not in the middle of a training."""
    graph = helper.make_graph(nodes, "g", [A], [B])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    with pytest.raises(ArtifactError, match=words):
        NumpyGraph(read_model(content))


def test_the_runtime_names_the_file_that_it_cannot_run(small_artifact):
    """An error inside an artifact says which of its graphs is meant."""
    manifest = small_artifact.manifest
    files = {**manifest.files, "step.onnx": BlobRef.of(b"\x00\x00")}
    content = {"step.onnx": b"\x00\x00"}
    broken = TrainingArtifact.of(dataclasses.replace(manifest, files=files), content)
    with pytest.raises(ArtifactError, match=r"step\.onnx: not a protobuf"):
        NumpyRuntime().open(broken)
