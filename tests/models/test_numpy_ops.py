"""NumPy kernels against onnx's own reference evaluator, from one table."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.runtime.numpy_ops import KERNELS

DRAW = np.random.default_rng(5)


def f(*shape):
    """Normal float32 numbers."""
    return DRAW.standard_normal(shape).astype(np.float32)


def positive(*shape):
    """float32 numbers from 0.5 to 2."""
    return DRAW.uniform(0.5, 2, shape).astype(np.float32)


def i64(*values):
    """A constant int64[n]."""
    return np.array(values, np.int64)


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

CASES = [
    ("Abs", [f(2, 3)], {}),
    ("Add", [f(2, 3), f(3)], {}),
    ("And", [f(4) > 0, f(4) > 0], {}),
    ("ArgMax", [f(4, 5)], {"axis": -1, "keepdims": 0}),
    ("ArgMax", [f(4, 5)], {"axis": 0}),
    ("Cast", [f(3) * 10], {"to": 7}),
    ("Cast", [i64(1, 0, 2)], {"to": 1}),
    ("Clip", [f(3, 4), np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [f(3, 4), np.float32(-0.5)], {}),
    ("Div", [f(2, 3), positive(3)], {}),
    ("Div", [i64(7, -7, 9), i64(2, 2, -3)], {}),
    ("Equal", [i64(1, 2, 3), i64(1, 0, 3)], {}),
    ("Exp", [f(2, 3)], {}),
    ("Floor", [f(2, 3) * 4], {}),
    ("Expand", [f(2, 1), i64(3, 1, 4)], {}),
    ("Gemm", [f(3, 4), f(4, 2)], {}),
    ("Gemm", [f(3, 4), f(2, 4), f(2)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [f(4, 3), f(4, 2), f(1, 2)], {"transA": 1}),
    ("Greater", [f(2, 3), f(3)], {}),
    ("Identity", [f(3)], {}),
    ("LeakyRelu", [f(3, 4)], {"alpha": 0.2}),
    ("LeakyRelu", [f(3, 4)], {}),
    ("Less", [f(2, 3), f(3)], {}),
    ("Log", [positive(3)], {}),
    ("LogSoftmax", [f(3, 5) * 10], {"axis": -1}),
    ("LogSoftmax", [f(3, 5)], {"axis": 0}),
    ("MatMul", [f(2, 3, 4), f(4, 5)], {}),
    ("MatMul", [f(3, 4), f(4)], {}),
    ("Max", [f(2, 3), f(3), f(1)], {}),
    ("Min", [f(2, 3), f(3)], {}),
    ("Mul", [f(2, 3), f(2, 1)], {}),
    ("Neg", [f(3)], {}),
    ("Not", [f(3) > 0], {}),
    ("OneHot", [np.array([0, 2, -1, 1], np.int32), np.array(3, np.int32), f(2)], {"axis": -1}),
    ("Reciprocal", [positive(3)], {}),
    ("ReduceMax", [f(2, 3, 4), i64(1)], {}),
    ("ReduceMean", [f(2, 3, 4), i64(0, -1)], {"keepdims": 0}),
    ("ReduceSum", [f(2, 3, 4)], {"keepdims": 0}),
    ("ReduceSum", [f(2, 3, 4), i64(1)], {}),
    ("ReduceSum", [f(2, 3), np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}),
    ("Relu", [f(3, 4)], {}),
    ("Reshape", [f(2, 6), i64(0, -1, 2)], {}),
    ("Shape", [f(2, 3, 4)], {}),
    ("Shape", [f(2, 3, 4)], {"start": 1, "end": -1}),
    ("Sigmoid", [f(3, 4) * 60], {}),
    ("Size", [f(2, 3)], {}),
    ("Softmax", [f(3, 5) * 50], {"axis": -1}),
    ("Sqrt", [positive(3)], {}),
    ("Squeeze", [f(2, 1, 3, 1)], {}),
    ("Squeeze", [f(2, 1, 3, 1), i64(-1)], {}),
    ("Sub", [f(2, 3), f(3)], {}),
    ("Sum", [f(2, 3), f(3), f(1, 1)], {}),
    ("Tanh", [f(3)], {}),
    ("Transpose", [f(2, 3, 4)], {}),
    ("Transpose", [f(2, 3, 4)], {"perm": [2, 0, 1]}),
    ("Unsqueeze", [f(2, 3), i64(0, -1)], {}),
    ("Where", [f(2, 3) > 0, f(3), f(2, 1)], {}),
    ("AveragePool", [f(2, 3, 7)], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    (
        "AveragePool",
        [f(2, 3, 6, 5)],
        {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 1, 1], "count_include_pad": 1},
    ),
    ("AveragePool", [f(2, 3, 6, 4)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Concat", [f(2, 3), f(2, 1), f(2, 2)], {"axis": 1}),
    ("Concat", [f(2, 3), f(1, 3)], {"axis": -2}),
    ("ConstantOfShape", [i64(2, 3)], {"value": numpy_helper.from_array(np.array([2.5], np.float32))}),
    ("Conv", [f(2, 3, 7, 6), f(4, 3, 3, 2), f(4)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [f(2, 4, 9), f(6, 2, 3)], {"group": 2, "dilations": [2], "pads": [2, 1]}),
    ("Conv", [f(2, 3, 8, 8), f(6, 1, 3, 3), f(6)], {"group": 3, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", [f(2, 3, 5), f(3, 2, 4), f(2)], {"strides": [2], "pads": [1, 1]}),
    (
        "ConvTranspose",
        [f(1, 4, 3, 4), f(4, 1, 3, 2)],
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
    ),
    ("ConvTranspose", [f(1, 2, 4), f(2, 3, 3)], {"dilations": [3], "pads": [2, 3]}),
    ("Cos", [f(3)], {}),
    ("Erf", [f(3, 4) * 2], {}),
    ("Gather", [f(5, 3), i64(0, 2, -1)], {}),
    ("Gather", [f(2, 5, 3), np.array([[1, 4], [0, 0]], np.int32)], {"axis": 1}),
    ("Gather", [f(2, 5), np.array(1, np.int64)], {"axis": -1}),
    ("IsNaN", [np.array([1, np.nan], np.float32)], {}),
    ("MaxPool", [f(2, 3, 7)], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    ("MaxPool", [f(2, 3, 7, 6)], {"kernel_shape": [3, 2], "dilations": [2, 1]}),
    ("MaxPool", [f(2, 3, 6, 4)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Mod", [i64(7, -7, 9), i64(3, 3, -4)], {}),
    ("Mod", [f(5), positive(5)], {"fmod": 1}),
    ("Or", [f(4) > 0, f(4) > 0], {}),
    ("Pad", [f(2, 3), i64(0, 1, 2, 0)], {}),
    ("Pad", [f(2, 3), i64(1, 1, 0, 2), np.array(0.5, np.float32)], {"mode": "constant"}),
    ("Pow", [positive(3), np.array(2.5, np.float32)], {}),
    ("Range", [np.array(1, np.int64), np.array(9, np.int64), np.array(3, np.int64)], {}),
    ("Resize", [f(2, 1, 2, 3), None, np.array([1, 1, 2, 3], np.float32)], NEAREST),
    (
        "ScatterND",
        [f(5, 3), np.array([[0], [4], [0]], np.int64), f(3, 3)],
        {"reduction": "add"},
    ),
    ("Sin", [f(3)], {}),
    ("Slice", [f(4, 5), i64(1, -4), i64(3, -1)], {}),
    ("Slice", [f(4, 5, 6), i64(0, 5), i64(1 << 40, 0), i64(1, -1), i64(2, -2)], {}),
    ("Slice", [f(3, 4), i64(-1), i64(-(1 << 31) + 1), i64(1), i64(-1)], {}),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), CASES, ids=[f"{op}-{at}" for at, (op, _, _) in enumerate(CASES)]
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_kernel_computes_what_the_standard_says(op, inputs, attributes):
    """Values, shape and element type are those of the reference evaluator."""
    names = [f"i{at}" if array is not None else "" for at, array in enumerate(inputs)]
    feeds = {name: np.asarray(array) for name, array in zip(names, inputs, strict=True) if name}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    node = helper.make_node(op, names, ["o"], **attributes)
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("o", 0, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    expected = reference(op, model, feeds)
    with np.errstate(all="ignore"):
        read = {entry.name: as_read(helper.get_attribute_value(entry)) for entry in node.attribute}
        got = KERNELS[op](read, *(feeds.get(name) for name in names))
    assert got.dtype == np.asarray(expected).dtype
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert got.shape == np.shape(expected)


def as_read(value):
    """An attribute as our own reader gives it."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def reference(op, model, feeds):
    """What the standard's own evaluator gives; ONNX Runtime where that one is wrong or incomplete."""
    if op not in {"ConvTranspose", "AveragePool", "MaxPool", "Resize"}:
        return ReferenceEvaluator(model).run(None, feeds)[0]
    onnxruntime = pytest.importorskip("onnxruntime")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_every_kernel_has_a_case():
    """A kernel that nobody compared is a kernel that may be wrong."""
    assert {op for op, _, _ in CASES} == set(KERNELS)


def test_extreme_logits_stay_finite():
    """The loss of a badly wrong row is large, not infinite: float32 exp underflows long before."""
    logits = np.array([[300, -300, 0]], np.float32)
    np.testing.assert_allclose(KERNELS["LogSoftmax"]({"axis": -1}, logits), [[0, -600, -300]])
    np.testing.assert_allclose(KERNELS["Sigmoid"]({}, logits), [[1, 0, 0.5]], atol=1e-30)
