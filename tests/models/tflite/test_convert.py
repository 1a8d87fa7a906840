"""The file as a whole: the pinned names, the same bytes, few copies, and refusals that name the node."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.errors import ArtifactError
from models.build.tflite import write_tflite
from models.runtime import TrainingArtifact

BATCH = 4


def graph(nodes, inputs, outputs, constants=()):
    """The bytes of a graph: ``inputs`` and ``outputs`` map names to shapes of float32 values."""

    def declared(values):
        return [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in values.items()]

    proto = helper.make_graph(
        nodes,
        "test",
        declared(inputs),
        declared(outputs),
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def operators(content):
    """The builtin operators of a file in order, read with the schema's own classes."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    assert len(model.subgraphs) == 1
    codes = [code.builtinCode for code in model.operatorCodes]
    return [names[codes[call.opcodeIndex]] for call in model.subgraphs[0].operators or []]


@pytest.mark.parametrize("name", ["step", "eval", "infer"])
def test_names_types_and_shapes_are_those_of_the_onnx_graph(digits_for_all, name):
    """The batch apart, which is 32 here; anyone may drive the file by its signature."""
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    from models.runtime.onnx_reader import read_model

    artifact = TrainingArtifact.open(digits_for_all)
    source = read_model(artifact.read(f"{name}.onnx"))
    interpreter = interpreter_module.Interpreter(model_content=artifact.read(f"{name}.tflite"))
    runner = interpreter.get_signature_runner(name)
    for details, values in (
        (runner.get_input_details(), source.inputs),
        (runner.get_output_details(), source.outputs),
    ):
        expected = {
            value.name: (tuple(32 if dim is None else dim for dim in value.shape), value.dtype)
            for value in values
        }
        found = {
            key: (tuple(entry["shape"].tolist()), np.dtype(entry["dtype"])) for key, entry in details.items()
        }
        assert found == expected
    # The tensors bear the same names: what drives them directly needs no signature.
    assert {entry["name"] for entry in interpreter.get_input_details()} == {v.name for v in source.inputs}
    assert {entry["name"] for entry in interpreter.get_output_details()} == {v.name for v in source.outputs}


def test_the_same_graph_gives_the_same_bytes(digits_for_all):
    """So that an artifact's hash says what is in it."""
    artifact = TrainingArtifact.open(digits_for_all)
    content = write_tflite(artifact.read("step.onnx"), signature="step", batch=32)
    assert content == artifact.read("step.tflite")
    assert content[4:8] == b"TFL3"


def test_an_mlps_step_copies_nothing(digits_for_all):
    """No BROADCAST_TO, the slow one, and no TRANSPOSE: a product reads its operands as they are stored."""
    used = operators(TrainingArtifact.open(digits_for_all).read("step.tflite"))
    assert "BROADCAST_TO" not in used
    assert "TRANSPOSE" not in used
    assert used.count("BATCH_MATMUL") == 5


def test_transposes_that_cancel_out_leave_nothing_behind(interpret):
    """A transpose is another way to read, not a copy."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]),
        helper.make_node("Relu", ["turned"], ["active"]),
        helper.make_node("Transpose", ["active"], ["y"], perm=[1, 0]),
    ]
    content = write_tflite(graph(nodes, {"x": ["batch", 3]}, {"y": ["batch", 3]}), signature="t", batch=BATCH)
    assert operators(content) == ["RELU"]
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(interpret(content, "t", {"x": x})["y"], np.maximum(x, 0))


def test_convolutions_in_a_row_stay_channels_last(interpret):
    """One transposition on the way in, one on the way out, none between; filters apart."""
    constants = [(name, np.ones((2, 2, 3, 3), np.float32)) for name in ("first", "second")]
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], pads=[1, 1, 1, 1]),
    ]
    content = write_tflite(
        graph(nodes, {"x": ["batch", 2, 5, 5]}, {"y": ["batch", 2, 5, 5]}, constants),
        signature="t",
        batch=BATCH,
    )
    assert operators(content) == ["TRANSPOSE", "CONV_2D", "RELU", "CONV_2D", "TRANSPOSE"]


def test_outputs_that_are_inputs_constants_or_each_other_are_copies(interpret):
    """An interpreter hands out one tensor under one name."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["twin"]),
        helper.make_node("Identity", ["c"], ["fixed"]),
    ]
    shapes = {"same": ["batch", 3], "y": ["batch", 3], "twin": ["batch", 3], "fixed": [2]}
    constants = [("c", np.array([1, 2], np.float32))]
    content = write_tflite(graph(nodes, {"x": ["batch", 3]}, shapes, constants), signature="t", batch=BATCH)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    got = interpret(content, "t", {"x": x})
    np.testing.assert_array_equal(got["same"], x)
    np.testing.assert_array_equal(got["twin"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["y"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["fixed"], [1, 2])


def test_what_depends_on_shapes_alone_is_computed_now(interpret):
    """Shape, Size and their arithmetic leave no operator: the batch is known."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "minus_one"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["flat", "number"], ["y"]),
    ]
    constants = [("minus_one", np.array([-1], np.int64))]
    content = write_tflite(
        graph(nodes, {"x": ["batch", 2, 3]}, {"y": ["batch", 6]}, constants), signature="t", batch=BATCH
    )
    assert operators(content) == ["RESHAPE", "DIV"]
    x = np.ones((4, 2, 3), np.float32)
    np.testing.assert_allclose(interpret(content, "t", {"x": x})["y"], np.full((4, 6), 1 / 24), rtol=1e-6)


def ints(*values):
    """A constant int64[n]."""
    return np.array(values, np.int64)


REFUSED = [
    ("Hardmax", [(3, 4)], {}, "no such operator"),
    ("Elu", [(3, 4)], {"alpha": 0.5}, "alpha"),
    ("Cast", [(3, 4)], {"to": TensorProto.DOUBLE}, "element type 11"),
    ("ArgMax", [(3, 4)], {"select_last_index": 1}, "select_last_index"),
    ("ReduceSum", [(3, 4), (1,)], {}, "computed"),
    ("Reshape", [(3, 4), (2,)], {}, "computed"),
    ("Reshape", [(3, 4), ints(5, 3)], {}, "cannot become"),
    ("Slice", [(3, 8), ints(6), ints(2), ints(1), ints(-1)], {}, "backwards"),
    ("Pad", [(3, 4), ints(0, 1, 0, 1)], {"mode": "reflect"}, "reflection"),
    ("Pad", [(2, 2, 2, 2, 2), ints(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)], {}, "5 dimensions"),
    ("Add", [(2, 1, 2, 1, 2), (1, 2, 1, 2, 1)], {}, "broadcasting"),
    ("ScatterND", [np.ones((3, 2), np.float32), ints(0).reshape(1, 1), (1, 2)], {}, "zeros"),
    ("Conv", [(1, 2, 5, 5), (2, 2, 3, 3)], {"auto_pad": "SAME_UPPER"}, "auto_pad"),
    ("Conv", [(1, 2, 5, 5), (2, 2, 3, 3)], {"pads": [-1, 0, 0, 0]}, "negative"),
    ("Conv", [(1, 2, 5, 5, 5), (2, 2, 3, 3, 3)], {}, "3 dimensions"),
    ("Conv", [(1, 2, 5, 5), (2, 1, 3, 3)], {"group": 2, "strides": [1, 2]}, "equal strides|depthwise"),
    ("MaxPool", [(1, 2, 5, 5)], {"kernel_shape": [2, 2], "ceil_mode": 1}, "rounding up"),
    ("MaxPool", [(1, 2, 5, 5)], {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilation"),
    ("AveragePool", [(1, 2, 5, 5)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, "padding"),
    (
        "Resize",
        [(1, 2, 4, 4), None, np.array([1, 1, 2, 2], np.float32)],
        {"mode": "linear"},
        "interpolation",
    ),
    ("Resize", [(1, 2, 4, 4), None, np.array([1, 1, 1.5, 2], np.float32)], {"mode": "nearest"}, "whole"),
    ("BatchNormalization", [(1, 2, 4, 4), (2,), (2,), (2,), (2,)], {"training_mode": 1}, "training"),
    ("Gather", [(3, 4), (2,)], {"axis": "zero"}, "no integer"),
    ("Transpose", [(3, 4)], {"perm": 1}, "no list"),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "words"), REFUSED)
def test_what_tflite_cannot_do_is_refused_by_node_and_operator(op, inputs, attributes, words):
    """Never a file that computes something else."""
    names = ["" if given is None else f"in{index}" for index, given in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], name="fwd.the_node", **attributes)
    shapes = {f"in{i}": list(given) for i, given in enumerate(inputs) if isinstance(given, tuple)}
    constants = [(f"in{i}", given) for i, given in enumerate(inputs) if isinstance(given, np.ndarray)]
    content = graph([node], shapes, {"y": [1]}, constants)
    with pytest.raises(ArtifactError, match=rf"node 'the_node' \({op}\): .*({words})"):
        write_tflite(content, signature="t", batch=BATCH)


def test_a_constant_beyond_32_bits_is_refused():
    """TFLite graphs of ours count in int32."""
    node = helper.make_node("Equal", ["wide", "c"], ["y"], name="fwd.the_node")
    cast = helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.INT64)
    constants = [("c", np.array([1 << 40], np.int64))]
    with pytest.raises(ArtifactError, match="32 bits"):
        write_tflite(graph([cast, node], {"x": [1]}, {"y": [1]}, constants), signature="t", batch=BATCH)


def test_a_shape_that_differs_from_the_onnx_graphs_is_refused():
    """The two graphs are one contract; a translation that errs is found when the file is written."""
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ArtifactError, match=r"'y' as \[4, 3\], not \[4, 5\]"):
        write_tflite(graph([node], {"x": ["batch", 3]}, {"y": ["batch", 5]}), signature="t", batch=BATCH)
