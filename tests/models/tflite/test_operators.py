"""Every ONNX operator that is translated, in every use of it that differs: the same numbers on LiteRT."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.build.tflite import TRANSLATIONS, write_tflite


@dataclasses.dataclass(frozen=True)
class Case:
    """One node: a tuple is the shape of a drawn input, an array is a constant, ``None`` is left out."""

    op: str
    inputs: tuple
    attributes: dict
    positive: bool = False
    outputs: int = 1

    def __str__(self):
        shapes = [x if x is None or isinstance(x, tuple | str) else x.tolist() for x in self.inputs]
        return f"{self.op}-{shapes}-{self.attributes}"


def case(op, *inputs, positive=False, outputs=1, **attributes):
    """A case with the node's attributes as words."""
    return Case(op, inputs, attributes, positive, outputs)


def ints(*values):
    """A constant int64[n]: axes, a shape."""
    return np.array(values, np.int64)


UNARY = ["Abs", "Ceil", "Cos", "Exp", "Floor", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Sign"]
CASES = [
    *(case(op, (3, 4)) for op in [*UNARY, "Sin", "Softplus", "Tanh", "Elu", "Erf", "IsNaN"]),
    *(case(op, (3, 4), positive=True) for op in ["Log", "Sqrt", "Reciprocal"]),
    *(case(op, (3, 4), (3, 4)) for op in ["Add", "Sub", "Mul", "Max", "Min"]),
    *(case(op, (3, 4), (4,)) for op in ["Add", "Sub", "Mul", "Max", "Min"]),
    *(case(op, (), (3, 4)) for op in ["Add", "Sub", "Mul"]),
    case("Add", (2, 3, 2, 4, 5), (5,)),
    case("Add", (2, 3, 2, 4, 2), np.array(0.5, np.float32)),
    case("Mul", (2, 1, 2, 4, 1, 5), (2, 3, 2, 4, 1, 1)),
    case("Div", (3, 4), (3, 1), positive=True),
    case("Pow", (3, 4), np.array(2, np.float32)),
    case("Sum", (3, 4), (4,), (3, 1)),
    *(case(op, (3, 4), (4,)) for op in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]),
    *(case(op, "bool", "bool") for op in ["And", "Or"]),
    case("Not", "bool"),
    case("Where", "bool", (3, 4), (4,)),
    case("Where", "bool", (3, 4), np.array(0, np.float32)),
    case("Clip", (3, 4), np.array(-0.5, np.float32), np.array(0.5, np.float32)),
    case("Clip", (3, 4), np.array(0, np.float32)),
    case("Cast", (3, 4), to=6),
    case("Cast", "bool", to=1),
    case("Cast", "int32", to=1),
    *(
        case("Gemm", (4, 3) if a else (3, 4), (5, 4) if b else (4, 5), transA=a, transB=b)
        for a in (0, 1)
        for b in (0, 1)
    ),
    case("Gemm", (3, 4), (5, 4), (5,), transB=1),
    case("Gemm", (3, 4), (4, 5), (3, 5), alpha=0.5, beta=2.0),
    case("MatMul", (3, 4), (4, 5)),
    case("MatMul", (2, 3, 4), (4, 5)),
    case("MatMul", (2, 3, 4), (2, 4, 5)),
    case("MatMul", (2, 1, 3, 4), (5, 4, 2)),
    *(case("Reduce" + kind, (2, 3, 4), ints(1), keepdims=1) for kind in ["Sum", "Mean", "Max", "Min"]),
    case("ReduceSum", (2, 3, 4), ints(0, 2), keepdims=0),
    case("ReduceSum", (2, 3, 4), keepdims=0),
    case("ReduceMean", (8, 20, 20, 3), ints(0, 1, 2), keepdims=1),
    case("ReduceMean", (8, 20, 20, 3), ints(0, 1, 2), keepdims=0),
    *(case(op, (2, 3, 4), axis=axis) for op in ["Softmax", "LogSoftmax"] for axis in (-1, 1)),
    case("ArgMax", (3, 4), axis=-1, keepdims=0),
    case("ArgMax", (3, 4), axis=0, keepdims=1),
    case("OneHot", "int32", np.array(4, np.int32), np.array([0, 1], np.float32), axis=-1),
    case("Reshape", (2, 3, 4), ints(0, -1)),
    case("Flatten", (2, 3, 4), axis=2),
    case("Squeeze", (2, 1, 4, 1), ints(1)),
    case("Squeeze", (2, 1, 4, 1)),
    case("Unsqueeze", (2, 3), ints(0, -1)),
    case("Transpose", (2, 3, 4), perm=[2, 0, 1]),
    case("Transpose", (2, 1, 4), perm=[1, 0, 2]),
    case("Expand", (3, 1), ints(2, 3, 4)),
    case("Expand", (), ints(2, 3)),
    case("Concat", (2, 3), (2, 1), axis=1),
    case("Split", (2, 6), ints(1, 2, 3), axis=1, outputs=3),
    case("Split", (2, 6), axis=-1, outputs=2),
    case("Slice", (4, 6), ints(1), ints(3), ints(0)),
    case("Slice", (4, 6), ints(0, 1), ints(9, -1), ints(0, 1), ints(1, 2)),
    case("Slice", (4, 6), ints(-1), ints(-9), ints(1), ints(-1)),
    case("Pad", (2, 3), ints(0, 1, 2, 0)),
    case("Pad", (2, 3), ints(0, 1, 2, 0), np.array(7, np.float32)),
    case("Pad", (4, 5), ints(-1, 0, 1, -2)),
    case("Pad", (2, 3, 2, 3, 2), ints(0, 0, 0, 0, 1, 0, 0, 0, 0, 1)),
    case("Gather", (4, 3), np.array(-1, np.int64), axis=0),
    case("Gather", (4, 3), ints(2, 0, -1), axis=1),
    case("Gather", (4, 3), "int32", axis=0),
    case("ScatterND", np.zeros((4, 3), np.float32), "rows", (2, 3), reduction="add"),
    case("Conv", (2, 3, 8, 8), (4, 3, 3, 3), (4,), pads=[1, 1, 1, 1]),
    case("Conv", (2, 3, 8, 8), (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("Conv", (2, 3, 8, 8), (4, 3, 3, 3), dilations=[2, 2]),
    case("Conv", (2, 3, 8, 8), (4, 3, 3, 3), pads=[0, 1, 2, 0]),
    case("Conv", (2, 5, 8, 9), (4, 5, 3, 2), (4,), pads=[1, 0, 1, 2]),
    case("Conv", (2, 5, 9, 8), (4, 5, 3, 3), strides=[2, 3], pads=[1, 1, 0, 2]),
    case("Conv", (2, 5, 9, 8), (4, 5, 3, 2), (4,), strides=[2, 1], dilations=[1, 3]),
    case("Conv", (2, 5, 6, 6), (4, 5, 1, 1), (4,)),
    case("Conv", (5, 6, 10, 9), (4, 6, 8, 7), pads=[0, 1, 1, 0]),
    case("Conv", (5, 6, 10, 9), (4, 6, 4, 4), dilations=[2, 2], pads=[1, 1, 0, 0]),
    case("Conv", (5, 6, 11, 11), (4, 6, 5, 9), strides=[3, 1]),
    case("Conv", (2, 5, 9), (4, 5, 3), (4,), strides=[2], pads=[1, 1]),
    case("Conv", (5, 2, 12), (4, 2, 10), pads=[0, 1]),
    case("Conv", (2, 5, 8, 8), np.ones((4, 5, 3, 3), np.float32)),
    case("Conv", (2, 4, 8, 8), (4, 1, 3, 3), (4,), group=4, pads=[1, 1, 1, 1]),
    case("Conv", (2, 4, 8, 8), (8, 1, 3, 3), group=4, dilations=[2, 2]),
    case("Conv", (2, 4, 8, 8), (6, 2, 3, 3), (6,), group=2, strides=[2, 2]),
    case("Conv", (2, 3, 9), (4, 3, 3), (4,), strides=[2], pads=[1, 1]),
    case("Conv", (2, 4, 9), (4, 1, 3), group=4, strides=[2]),
    case("ConvTranspose", (2, 3, 5, 5), (3, 4, 3, 3), (4,)),
    case("ConvTranspose", (2, 3, 5, 5), (3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", (2, 3, 5), (3, 4, 4), strides=[2], pads=[1, 1], output_padding=[1]),
    case("ConvTranspose", (2, 3, 5, 5), (3, 1, 3, 3), group=3, strides=[2, 2], pads=[1, 1, 0, 0]),
    case("ConvTranspose", (2, 3, 5, 5), (3, 1, 3, 3), (3,), group=3),
    case("ConvTranspose", (2, 6, 5, 5), (6, 1, 3, 3), group=3, strides=[2, 2]),
    case("ConvTranspose", (2, 4, 5, 5), (4, 3, 3, 3), (6,), group=2, strides=[2, 1]),
    case("ConvTranspose", (2, 4, 5), (4, 2, 3), group=2, strides=[2], pads=[1, 0]),
    case("MaxPool", (2, 3, 8, 8), kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", (2, 3, 8, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", (2, 3, 8), kernel_shape=[2], strides=[2]),
    case("AveragePool", (2, 3, 8, 8), kernel_shape=[2, 2], strides=[2, 2]),
    case(
        "AveragePool",
        (2, 3, 8, 8),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
    ),
    case("GlobalAveragePool", (2, 3, 8, 8)),
    case("Resize", (2, 3, 4, 4), None, np.array([1, 1, 2, 3], np.float32), mode="nearest"),
    case("Resize", (2, 3, 4), None, None, ints(2, 3, 8), mode="nearest"),
    case("BatchNormalization", (2, 3, 4, 4), (3,), (3,), (3,), (3,), positive=True, epsilon=1e-3),
]


def drawn(what, draw, positive):
    """An input: floats off the kinks, or one of the kinds that have a name."""
    if what == "bool":
        return draw.integers(0, 2, (3, 4)).astype(bool)
    if what == "int32":
        return draw.integers(0, 4, 3).astype(np.int32)
    if what == "rows":
        return np.array([[1], [1]], np.int32)
    values = draw.standard_normal(what).astype(np.float32)
    return np.abs(values) + np.float32(0.1) if positive else values


def one_node(case, feeds, constants, found):
    """The graph of the case; ``found`` are the outputs, or ``None`` while nobody knows their shapes."""
    names = [f"in{index}" if given is not None else "" for index, given in enumerate(case.inputs)]
    nodes = []
    if "rows" in [given for given in case.inputs if isinstance(given, str)]:
        # Graphs of ours take int32 and cast where an operator wants more.
        nodes.append(helper.make_node("Cast", ["in1"], ["wide"], to=TensorProto.INT64))
        names[1] = "wide"
    outputs = [f"out{index}" for index in range(case.outputs)]
    attributes = {"num_outputs": case.outputs} if case.op == "Split" and len(names) == 1 else {}
    nodes.append(helper.make_node(case.op, names, outputs, name="the_node", **case.attributes, **attributes))

    def value(name, array):
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
        )

    graph = helper.make_graph(
        nodes,
        "test",
        [value(name, array) for name, array in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs]
        if found is None
        else [value(name, array) for name, array in zip(outputs, found, strict=True)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


@pytest.mark.parametrize("signature", ["step", "eval"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_on_litert_what_it_computes_on_onnx(case, signature, interpret):
    """Drawn inputs, the stock ONNX Runtime as the judge, float32's rounding as the tolerance; a step is
    written for speed, other graphs for memory."""
    onnxruntime = pytest.importorskip("onnxruntime")
    draw = np.random.default_rng(5)
    feeds, constants = {}, {}
    for index, given in enumerate(case.inputs):
        if isinstance(given, np.ndarray):
            constants[f"in{index}"] = given
        elif given is not None:
            feeds[f"in{index}"] = drawn(given, draw, case.positive)
    session = onnxruntime.InferenceSession(
        one_node(case, feeds, constants, None), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, feeds)
    content = write_tflite(one_node(case, feeds, constants, expected), signature=signature, batch=1)
    got = interpret(content, signature, feeds)
    for index, wanted in enumerate(expected):
        array = got[f"out{index}"]
        assert array.shape == wanted.shape
        np.testing.assert_allclose(array.astype(np.float64), wanted.astype(np.float64), rtol=2e-5, atol=1e-5)


def test_every_translation_has_a_case():
    """Shape and Size are known when the file is written, so they leave no operator behind."""
    assert TRANSLATIONS.keys() - {case.op for case in CASES} == {"Shape", "Size"}
