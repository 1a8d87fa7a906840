"""The bounded ONNX reader: reads what onnx writes, refuses everything else with one error."""

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.errors import ArtifactError
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model
from models.zoo.mlp import mlp


def model_of(graph, opset=18, **options):
    """A ModelProto around a graph, as bytes."""
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, **options).SerializeToString()


def graph_of(nodes=(), constants=(), inputs=(), outputs=()):
    """A GraphProto."""
    return helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(constants))


def test_it_reads_what_the_onnx_package_reads(digits_folder):
    """Nodes, attributes, constants, inputs and outputs of a real step graph are the same."""
    content = (digits_folder / "step.onnx").read_bytes()
    ours, theirs = read_model(content), onnx.load_from_string(content).graph
    assert [(n.op, n.name, n.inputs, n.outputs) for n in ours.nodes] == [
        (n.op_type, n.name or n.output[0], tuple(n.input), tuple(n.output)) for n in theirs.node
    ]
    for mine, node in zip(ours.nodes, theirs.node, strict=True):
        assert mine.attributes == {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert list(ours.constants) == [tensor.name for tensor in theirs.initializer]
    for tensor in theirs.initializer:
        expected = numpy_helper.to_array(tensor)
        assert ours.constants[tensor.name].dtype == expected.dtype
        np.testing.assert_array_equal(ours.constants[tensor.name], expected)
    shapes = {value.name: value.shape for value in ours.inputs}
    assert shapes["x"] == (None, 64)
    assert shapes["w.layer1.weight"] == (32, 64)
    assert shapes["lr"] == ()
    assert [value.name for value in ours.outputs] == [value.name for value in theirs.output]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "listed"])
@pytest.mark.parametrize(
    ("element", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.25, 3e-7]),
        (TensorProto.DOUBLE, [1.5, -2.25, 3e-70]),
        (TensorProto.INT32, [7, -1, 2**31 - 1]),
        (TensorProto.INT64, [7, -1, -(2**63)]),
        (TensorProto.BOOL, [1, 0, 1]),
    ],
)
def test_it_reads_every_element_type_in_both_writings(element, values, raw):
    """Values may stand as raw bytes or listed one by one."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    array = np.array(values, dtype)
    tensor = helper.make_tensor("t", element, [3], array.tobytes() if raw else values, raw=raw)
    constant = read_model(model_of(graph_of(constants=[tensor]))).constants["t"]
    assert constant.dtype == dtype
    np.testing.assert_array_equal(constant, array)
    assert not constant.flags.writeable


def test_it_reads_every_kind_of_attribute_it_knows():
    """Numbers, texts, tensors and lists."""
    attributes = {"i": -3, "f": 0.5, "s": b"text", "is": [1, -2], "fs": [0.5, 1.5]}
    node = helper.make_node("Op", ["a"], ["b"], t=numpy_helper.from_array(np.eye(2)), **attributes)
    (read,) = read_model(model_of(graph_of([node]))).nodes
    np.testing.assert_array_equal(read.attributes["t"], np.eye(2))
    assert {key: read.attributes[key] for key in attributes} == attributes


def external():
    """A tensor that lies in another file."""
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def short():
    """A tensor with fewer values than its dimensions say."""
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.dims[0] = 1 << 40
    return tensor


SUBGRAPH = helper.make_node("If", ["c"], ["d"], name="fork", then_branch=graph_of(), else_branch=graph_of())
ONE = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no graph"),
        (model_of(graph_of(), opset=17), "operator sets"),
        (model_of(graph_of([helper.make_node("A", [], ["b"], name="n", domain="com.evil")])), "foreign"),
        (model_of(graph_of([SUBGRAPH])), "kind"),
        (model_of(graph_of(constants=[external()])), "another file"),
        (model_of(graph_of(constants=[short()])), "2 values"),
        (model_of(graph_of(constants=[ONE, ONE])), "twice"),
        (model_of(graph_of(constants=[helper.make_tensor("t", TensorProto.STRING, [1], [b"x"])])), "type 8"),
        (model_of(graph_of(constants=[helper.make_tensor("t", 1, [1] * 9, [1.0])])), "dimensions"),
        (model_of(graph_of([helper.make_node("A" * 2000, [], ["b"])])), "characters"),
        (model_of(graph_of([helper.make_node("A", ["a"] * 5000, ["b"])])), "inputs"),
        (b"\x3a\x05abc", "cut off"),
        (b"\x3b", "wire type 3"),
        (b"\x00\x00", "field number 0"),
        (b"\xff" * 11, "64 bits"),
        (b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f", "64 bits"),
        (b"\x38\x01", "number where"),
    ],
)
def test_what_it_does_not_understand_it_refuses(content, words):
    """Nothing is guessed; the error says what was found."""
    with pytest.raises(ArtifactError, match=words):
        read_model(content)


@settings(deadline=None)
@given(st.binary(max_size=300))
@example(b"\x3a\x00")
def test_arbitrary_bytes_are_read_or_refused(content):
    """No byte string makes the reader raise anything but its own error."""
    read_or_refuse(content)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_damaged_model_is_read_or_refused(data):
    """Bytes changed, cut out or repeated in a real model: one error, and quickly."""
    content = bytearray(mlp((3, 4, 2)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "cut", "repeat"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 20))]
            case "repeat":
                content[at:at] = content[at : at + data.draw(st.integers(1, 20))]
        if not content:
            break
    read_or_refuse(bytes(content))


def read_or_refuse(content):
    """Read the bytes and make the graph ready to run."""
    try:
        graph = NumpyGraph(read_model(content))
        graph({"x": np.zeros((2, 3), np.float32)})
    except ArtifactError:
        pass
