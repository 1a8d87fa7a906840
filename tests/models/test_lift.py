"""What becomes a working graph, and what is refused with words that help."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.build.lift import lift, load_model
from models.runtime import RUNTIMES, split_flat
from models.zoo.mlp import mlp

DRAW = np.random.default_rng(9)


def network(nodes, parameters, *, x=("batch", 4), output="z", opset=18, **options):
    """A forward model: nodes are ``(op, inputs, output, attributes)``."""
    made = [
        helper.make_node(op, ins, [out], name=f"n{at}", **dict(rest[0] if rest else {}))
        for at, (op, ins, out, *rest) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", options.pop("kind", TensorProto.FLOAT), list(x))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in parameters.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def w(*shape):
    """A parameter."""
    return DRAW.standard_normal(shape).astype(np.float32)


def i64(*values):
    """An int64 constant."""
    return np.array(values, np.int64)


LINEAR = ("Gemm", ["h", "w", "b"], "z", {"transB": 1})
HEAD = {"w": w(3, 4), "b": w(3)}

GOOD = {
    "matmul and add": (
        [("MatMul", ["x", "k"], "m"), ("Add", ["m", "b"], "z")],
        {"k": w(4, 3), "b": w(3)},
        {},
    ),
    "flatten": ([("Flatten", ["x"], "h"), LINEAR], HEAD, {"x": ("batch", 2, 2)}),
    "reshape to minus one": (
        [("Reshape", ["x", "s"], "h"), LINEAR],
        {**HEAD, "s": i64(-1, 4)},
        {"x": ("n", 2, 2)},
    ),
    "reshape to zero": (
        [("Reshape", ["x", "s"], "h"), LINEAR],
        {**HEAD, "s": i64(0, -1)},
        {"x": (None, 2, 2)},
    ),
    "computed reshape": (
        [
            ("Shape", ["x"], "sh"),
            ("Gather", ["sh", "zero"], "rows", {"axis": 0}),
            ("Unsqueeze", ["rows", "first"], "rows1"),
            ("Concat", ["rows1", "rest"], "target", {"axis": 0}),
            ("Reshape", ["x", "target"], "h"),
            LINEAR,
        ],
        {**HEAD, "zero": np.array(0, np.int64), "first": i64(0), "rest": i64(-1)},
        {"x": ("batch", 2, 2)},
    ),
    "dropout and identity": (
        [("Identity", ["x"], "i"), ("Dropout", ["i"], "h"), LINEAR],
        HEAD,
        {},
    ),
    "softmax at the end": (
        [("Identity", ["x"], "h"), (*LINEAR[:2], "l", LINEAR[3]), ("Softmax", ["l"], "z")],
        HEAD,
        {},
    ),
    "constants inside": (
        [("Constant", [], "half", {"value_float": 0.5}), ("Mul", ["x", "half"], "h"), LINEAR],
        HEAD,
        {},
    ),
    "a weight used twice": (
        [("MatMul", ["x", "k"], "m"), ("Tanh", ["m"], "t"), ("MatMul", ["t", "k"], "h"), LINEAR],
        {**HEAD, "k": w(4, 4)},
        {},
    ),
    "a parameter transposed": (
        [("Transpose", ["k"], "kt", {"perm": [1, 0]}), ("MatMul", ["x", "kt"], "z")],
        {"k": w(3, 4)},
        {},
    ),
    "a one-element bias": (
        [("MatMul", ["x", "k"], "m"), ("Add", ["m", "b1"], "h"), LINEAR],
        {**HEAD, "k": w(4, 4), "b1": w(1)},
        {},
    ),
    "older operator set": (
        [("ReduceSum", ["x", "last"], "s", {"keepdims": 1}), ("Sub", ["x", "s"], "h"), LINEAR],
        {**HEAD, "last": i64(-1)},
        {"opset": 13},
    ),
    "newer operator set": ([("Relu", ["x"], "h"), LINEAR], HEAD, {"opset": 20}),
    "a batch of one built in by the exporter": ([("Relu", ["x"], "h"), LINEAR], HEAD, {"x": (1, 4)}),
    "names that the artifact uses itself": (
        [("Relu", ["x"], "loss"), ("Gemm", ["loss", "weight", "clip"], "output", {"transB": 1})],
        {"weight": w(3, 4), "clip": w(3)},
        {"output": "output"},
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_graph_as_exporters_write_it_becomes_an_artifact(case):
    """Every gate passed; all float parameters, and only they, are there by their own names."""
    nodes, parameters, options = GOOD[case]
    artifact = build_artifact(network(nodes, parameters, **options), loss="softmax_cross_entropy")
    wanted = {name: array.shape for name, array in parameters.items() if array.dtype == np.float32}
    assert {tensor.name: tensor.shape for tensor in artifact.layout.tensors} == wanted


def test_a_softmax_at_the_end_is_not_applied_twice():
    """The loss is that of the logits; inference still gives probabilities."""
    nodes, parameters, options = GOOD["softmax at the end"]
    artifact = build_artifact(network(nodes, parameters, **options), loss="softmax_cross_entropy")
    session = RUNTIMES["numpy"].open(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    x = w(5, 4)
    probabilities = session.infer(weights, x)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    from models.runtime import Batch

    sums = session.evaluate(weights, Batch.of(x, np.zeros(5, np.int32)))
    assert sums["loss"] == pytest.approx(-np.log(probabilities[:, 0]).sum(), rel=1e-5)


def test_patterns_choose_the_parameters():
    """What they do not name stays a constant of the graph."""
    model = mlp((4, 5, 3), seed=1)
    artifact = build_artifact(model, loss="softmax_cross_entropy", parameters=["layer2.*"])
    assert [tensor.name for tensor in artifact.layout.tensors] == ["layer2.weight", "layer2.bias"]


def test_parameters_keep_the_order_of_the_export():
    """The wire order is that of the initializers."""
    forward = lift(load_model(mlp((4, 5, 3))))
    assert list(forward.parameters) == ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"]


def test_the_model_that_is_given_is_not_changed():
    """A caller may build twice from one model in memory."""
    model = mlp((4, 5, 3))
    before = model.SerializeToString()
    build_artifact(model, loss="softmax_cross_entropy")
    assert model.SerializeToString() == before


def foreign():
    """A node of another domain."""
    model = network([("Relu", ["x"], "h"), LINEAR], HEAD)
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def with_branch():
    """A graph inside the graph."""
    model = network([("Relu", ["x"], "h"), LINEAR], {**HEAD, "c": np.array(True)})
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "branch", [], [value])
    model.graph.node[0].CopyFrom(
        helper.make_node("If", ["c"], ["h"], name="fork", then_branch=branch, else_branch=branch)
    )
    return model


def two(kind):
    """A second input or output."""
    model = network([("Relu", ["x"], "h"), LINEAR], HEAD)
    getattr(model.graph, kind).append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [None, 4]))
    if kind == "input":
        model.graph.input[-1].CopyFrom(helper.make_tensor_value_info("x2", TensorProto.FLOAT, [None, 4]))
    return model


def poisoned():
    """A parameter that is not a number."""
    return network([("Relu", ["x"], "h"), LINEAR], {**HEAD, "b": np.full(3, np.nan, np.float32)})


BAD = {
    "foreign domain": (foreign, "n0.*foreign operator domain 'com.microsoft'"),
    "branch": (with_branch, "fork.*between two graphs"),
    "unknown operator": (
        lambda: network([("Tan", ["x"], "h"), LINEAR], HEAD),
        "'n0' \\(Tan\\): the operator is not supported",
    ),
    "operator without a rule": (
        lambda: network(
            [("ArgMax", ["x"], "i", {"axis": 1, "keepdims": 0}), ("OneHot", ["i", "d", "v"], "z")],
            {"v": w(2), "d": np.array(4, np.int64)},
        ),
        "'n1' \\(OneHot\\): the operator has no gradient rule",
    ),
    "data-dependent shape": (
        lambda: network(
            [
                ("MatMul", ["x", "k"], "m"),
                ("ReduceSum", ["m", "rows"], "s", {"keepdims": 0}),
                ("Cast", ["s"], "target", {"to": 7}),
                ("Reshape", ["x", "target"], "h"),
                LINEAR,
            ],
            {**HEAD, "k": w(4, 2), "rows": i64(0)},
        ),
        "'n3' .Reshape. has a shape that cannot be known before the data is",
    ),
    "unreached parameter": (
        lambda: network([("Relu", ["x"], "h"), LINEAR], {**HEAD, "unused": w(2)}),
        "no gradient reaches unused",
    ),
    "gradient cut off": (
        lambda: network(
            [
                ("MatMul", ["x", "k"], "m"),
                ("Cast", ["m"], "i", {"to": 7}),
                ("Cast", ["i"], "h", {"to": 1}),
                LINEAR,
            ],
            {**HEAD, "k": w(4, 4)},
        ),
        "no gradient reaches k",
    ),
    "no parameters": (lambda: network([("Relu", ["x"], "z")], {}), "no parameters"),
    "input of truth values": (
        lambda: network([("Cast", ["x"], "h", {"to": 1}), LINEAR], HEAD, kind=TensorProto.BOOL),
        "'x' is BOOL",
    ),
    "free feature size": (
        lambda: network([("Relu", ["x"], "h"), LINEAR], HEAD, x=("batch", "width")),
        r"must be \[batch, sizes...\]",
    ),
    "batch built into a reshape": (
        lambda: network([("Reshape", ["x", "s"], "h"), LINEAR], {**HEAD, "s": i64(8, 4)}, x=(8, 2, 2)),
        r"'n0' \(Reshape\) makes \[8, 4\] of any number of rows",
    ),
    "batch mixed by flatten": (
        lambda: network([("Flatten", ["x"], "h", {"axis": 0}), LINEAR], HEAD, x=(1, 4)),
        "mixes the rows",
    ),
    "rows mixed by a mean": (
        lambda: network(
            [("ReduceMean", ["x", "rows"], "m"), ("Sub", ["x", "m"], "h"), LINEAR], {**HEAD, "rows": i64(0)}
        ),
        "mixes the rows of a batch",
    ),
    "two inputs": (lambda: two("input"), "2 inputs"),
    "two outputs": (lambda: two("output"), "2 outputs"),
    "one class": (
        lambda: network([("MatMul", ["x", "k"], "z")], {"k": w(4, 1)}),
        r"needs an output of \[batch, classes\]",
    ),
    "not a number": (poisoned, "'b' holds a value that is not finite"),
    "double parameters by name": (
        lambda: network([("Relu", ["x"], "h"), LINEAR], {**HEAD, "d": np.zeros(2)}),
        "'d' is DOUBLE",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_graph_that_cannot_be_trained_is_refused(case):
    """By name, node and remedy; never a wrong artifact."""
    make, words = BAD[case]
    parameters = ["*"] if case == "double parameters by name" else None
    with pytest.raises(ArtifactError, match=words):
        build_artifact(make(), loss="softmax_cross_entropy", parameters=parameters)


def test_nothing_is_written_for_a_refused_graph(tmp_path):
    """A folder that exists holds an artifact that passed every gate."""
    with pytest.raises(ArtifactError):
        build_artifact(poisoned(), loss="softmax_cross_entropy", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"loss": "softmax_cross_entropy", "optimizer": "lion"}, "no optimizer 'lion'"),
        ({"loss": "softmax_cross_entropy", "metrics": ["f1"]}, "no metric 'f1'"),
    ],
)
def test_an_unknown_choice_is_refused_with_those_there_are(choice, words):
    """The hint lists them."""
    with pytest.raises(ArtifactError, match=words):
        build_artifact(mlp((4, 3)), **choice)


def test_a_wrong_count_of_parameters_lists_them():
    """An exporter that folded a bias away is found by the count."""
    with pytest.raises(ArtifactError, match=r"(?s)15 parameters, not 16.*layer1.weight \[3, 4\]"):
        build_artifact(mlp((4, 3)), loss="softmax_cross_entropy", expect_params=16)


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x09\x3a\x02\x12\x00"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    """One kind of error, whatever the bytes are."""
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ArtifactError):
        build_artifact(tmp_path / "net.onnx", loss="softmax_cross_entropy")


def test_a_missing_file_is_named(tmp_path):
    """And not mistaken for a bad one."""
    with pytest.raises(ArtifactError, match=r"nothing\.onnx"):
        build_artifact(tmp_path / "nothing.onnx", loss="softmax_cross_entropy")


def test_weights_beside_the_file_are_found(tmp_path):
    """Exporters put large weights into a second file."""
    path = tmp_path / "net.onnx"
    onnx.save_model(mlp((4, 3)), path, save_as_external_data=True, location="net.data", size_threshold=0)
    artifact = build_artifact(path, loss="softmax_cross_entropy")
    assert artifact.layout.size == 15
    assert artifact.manifest.name == "net"
