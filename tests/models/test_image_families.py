"""Convolutional models of every kind, built by hand as exporters write them, through all gates."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.build.drawn_rows import draw_batch
from models.runtime import RUNTIMES, split_flat

_SPEC = importlib.util.spec_from_file_location("forward", Path(__file__).parent / "forward.py")
forward = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(forward)

network, w, zeros, ones, i64 = forward.network, forward.w, forward.zeros, forward.ones, forward.i64
CLASSES, NUMBERS, YES_OR_NO = forward.CLASSES, forward.NUMBERS, forward.YES_OR_NO


def cnn():
    """Convolutions with GroupNorm (an operator since operator set 21) and MaxPool."""
    return network(
        (1, 8, 8),
        [
            ("Conv", "x conv1.w conv1.b", "c1", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
            ("GroupNormalization", "c1 norm.w norm.b", "n1", {"num_groups": 4}),
            ("Relu", "n1", "r1", {}),
            ("MaxPool", "r1", "p1", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", "p1 conv2.w conv2.b", "c2", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            ("Relu", "c2", "r2", {}),
            ("MaxPool", "r2", "p2", {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [1, 1, 0, 0]}),
            ("GlobalAveragePool", "p2", "g", {}),
            ("Flatten", "g", "h", {}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "conv1.w": w(8, 1, 3, 3),
            "conv1.b": zeros(8),
            "norm.w": ones(8),
            "norm.b": zeros(8),
            "conv2.w": w(6, 8, 3, 3),
            "conv2.b": zeros(6),
            "head.w": w(3, 6),
            "head.b": zeros(3),
        },
        opset=21,
    )


def torch_group_norm():
    """A GroupNorm as PyTorch exports it: an InstanceNormalization of ones and zeros between reshapes."""
    constants = {"ones": ones(2), "zeros": zeros(2)}
    return network(
        (4, 6),
        [
            *(
                ("Constant", "", name, {"value": numpy_helper.from_array(array)})
                for name, array in constants.items()
            ),
            ("Conv", "x conv.w", "c", {}),
            ("Reshape", "c split", "s", {}),
            ("InstanceNormalization", "s ones zeros", "n", {}),
            ("Shape", "c", "shape", {}),
            ("Reshape", "n shape", "back", {}),
            ("Mul", "back norm.w", "scaled", {}),
            ("Add", "scaled norm.b", "moved", {}),
            ("HardSwish", "moved", "a", {}),
            ("Flatten", "a", "h", {}),
            ("Gemm", "h head.w", "z", {"transB": 1}),
        ],
        {
            "conv.w": w(4, 4, 3),
            "split": i64(0, 2, -1),
            "norm.w": ones(4, 1),
            "norm.b": zeros(4, 1),
            "head.w": w(3, 16),
        },
    )


def depthwise():
    """A depthwise-separable 1-D network with strides, dilation, Relu6 and an average pool."""
    return network(
        (3, 24),
        [
            ("Conv", "x stem.w stem.b", "c1", {"strides": [2], "pads": [2, 2]}),
            ("Clip", "c1 low high", "a1", {}),
            ("Conv", "a1 depth.w depth.b", "c2", {"group": 6, "dilations": [2], "pads": [2, 2]}),
            ("Conv", "c2 point.w point.b", "c3", {}),
            ("Clip", "c3 low high", "a2", {}),
            ("Conv", "a2 grouped.w", "c4", {"group": 2, "strides": [2], "pads": [1, 0]}),
            ("Add", "c4 shift", "c5", {}),
            ("AveragePool", "c5", "p", {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
            ("ReduceMean", "p last", "h", {"keepdims": 0}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "stem.w": w(6, 3, 5),
            "stem.b": zeros(6),
            "depth.w": w(6, 1, 3),
            "depth.b": zeros(6),
            "point.w": w(8, 6, 1),
            "point.b": zeros(8),
            "grouped.w": w(4, 4, 3),
            "shift": zeros(4, 1),
            "head.w": w(3, 4),
            "head.b": zeros(3),
            "low": np.float32(0),
            "high": np.float32(6),
            "last": i64(-1),
        },
    )


def dilated():
    """Dilation with groups, with strides, and in a transposed convolution, in one and in both directions."""
    return network(
        (2, 9, 8),
        [
            ("Conv", "x stem.w", "c1", {"dilations": [2, 1], "strides": [1, 2], "pads": [2, 1, 2, 1]}),
            ("Tanh", "c1", "a1", {}),
            ("Conv", "a1 groups.w groups.b", "c2", {"group": 2, "dilations": [2, 3], "pads": [2, 3, 2, 3]}),
            ("Tanh", "c2", "a2", {}),
            ("Conv", "a2 both.w", "c3", {"group": 2, "dilations": [3, 1], "strides": [2, 1]}),
            (
                "ConvTranspose",
                "c3 up.w up.b",
                "u",
                {"dilations": [2, 3], "strides": [2, 1], "output_padding": [1, 0]},
            ),
            ("Tanh", "u", "a3", {}),
            ("ConvTranspose", "a3 apart.w", "v", {"group": 3, "dilations": [1, 2]}),
            ("Flatten", "v", "h", {}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "stem.w": w(4, 2, 3, 3),
            "groups.w": w(4, 2, 3, 2),
            "groups.b": zeros(4),
            "both.w": w(4, 2, 2, 2),
            "up.w": w(4, 3, 2, 2),
            "up.b": zeros(3),
            "apart.w": w(3, 1, 2, 3),
            "head.w": w(3, 351),
            "head.b": zeros(3),
        },
    )


def squeeze_and_excite():
    """A residual block with squeeze and excitation, as in MobileNetV3, on images."""
    return network(
        (2, 6, 6),
        [
            ("Conv", "x stem.w stem.b", "c1", {"pads": [1, 1, 1, 1]}),
            ("HardSwish", "c1", "a1", {}),
            ("Conv", "a1 depth.w depth.b", "c2", {"group": 4, "pads": [1, 1, 1, 1]}),
            ("GlobalAveragePool", "c2", "s", {}),
            ("Conv", "s down.w down.b", "s1", {}),
            ("Relu", "s1", "s2", {}),
            ("Conv", "s2 up.w up.b", "s3", {}),
            ("HardSigmoid", "s3", "s4", {"alpha": 1 / 6}),
            ("Mul", "c2 s4", "e", {}),
            ("Add", "e a1", "r", {}),
            ("GlobalMaxPool", "r", "g", {}),
            ("Flatten", "g", "h", {}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "stem.w": w(4, 2, 3, 3),
            "stem.b": zeros(4),
            "depth.w": w(4, 1, 3, 3),
            "depth.b": zeros(4),
            "down.w": w(2, 4, 1, 1),
            "down.b": ones(2),
            "up.w": w(4, 2, 1, 1),
            "up.b": zeros(4),
            "head.w": w(3, 4),
            "head.b": zeros(3),
        },
    )


def batch_norm():
    """A convolution with BatchNorm, its statistics off their initial values."""
    return network(
        (2, 10),
        [
            ("Conv", "x conv.w", "c", {}),
            ("BatchNormalization", "c bn.w bn.b bn.mean bn.var", "n", {}),
            ("Elu", "n", "a", {}),
            ("Flatten", "a", "h", {}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "conv.w": w(4, 2, 3),
            "bn.w": ones(4),
            "bn.b": zeros(4),
            "bn.mean": w(4, scale=0.3),
            "bn.var": (1 + w(4, scale=0.3) ** 2).astype(np.float32),
            "head.w": w(3, 32),
            "head.b": zeros(3),
        },
    )


def autoencoder():
    """Down by strided convolutions, up by transposed ones and by nearest neighbours; 2-D."""
    return network(
        (1, 8, 8),
        [
            ("Conv", "x enc.w enc.b", "c1", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ("Relu", "c1", "a1", {}),
            ("Conv", "a1 mid.w mid.b", "c2", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ("Softplus", "c2", "a2", {}),
            (
                "ConvTranspose",
                "a2 up1.w up1.b",
                "u1",
                {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
            ),
            ("LeakyRelu", "u1", "a3", {"alpha": 0.1}),
            ("Resize", "a3  factors", "u2", {"mode": "nearest"}),
            ("Conv", "u2 out.w out.b", "c3", {"pads": [1, 1, 1, 1]}),
            ("Sigmoid", "c3", "z", {}),
        ],
        {
            "enc.w": w(4, 1, 3, 3),
            "enc.b": zeros(4),
            "mid.w": w(3, 4, 3, 3),
            "mid.b": zeros(3),
            "up1.w": w(3, 4, 3, 3, scale=0.3),
            "up1.b": zeros(4),
            "factors": np.array([1, 1, 2, 2], np.float32),
            "out.w": w(1, 4, 3, 3),
            "out.b": zeros(1),
        },
        rank=4,
    )


def autoencoder_1d():
    """A signal through a bottleneck and back, grouped transposed convolution included."""
    return network(
        (2, 16),
        [
            ("Conv", "x enc.w enc.b", "c1", {"strides": [4], "pads": [0, 0]}),
            ("Tanh", "c1", "a1", {}),
            ("ConvTranspose", "a1 dec.w dec.b", "u1", {"strides": [4], "group": 2}),
            ("Conv", "u1 out.w", "z", {"auto_pad": "SAME_LOWER"}),
        ],
        {"enc.w": w(6, 2, 4), "enc.b": zeros(6), "dec.w": w(6, 2, 4), "dec.b": zeros(4), "out.w": w(2, 4, 3)},
        rank=3,
    )


FAMILIES = {
    "cnn": (cnn, CLASSES, {}),
    "group norm as torch writes it": (torch_group_norm, CLASSES, {}),
    "depthwise 1-d": (depthwise, CLASSES, {}),
    "dilated": (dilated, CLASSES, {}),
    "squeeze and excite": (squeeze_and_excite, CLASSES, {}),
    "batch norm, frozen": (batch_norm, CLASSES, {"batch_norm": "frozen"}),
    "batch norm, averaged": (batch_norm, CLASSES, {"batch_norm": "averaged"}),
    "batch norm, local": (batch_norm, CLASSES, {}),
    "batch norm, personal with a frozen head": (
        batch_norm,
        CLASSES,
        {"personal": ["bn.*"], "train": ["conv.*"], "optimizer": "adamw"},
    ),
    "autoencoder": (autoencoder, YES_OR_NO, {}),
    "autoencoder 1-d": (autoencoder_1d, NUMBERS, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_builds_and_learns(family):
    """Its gates pass, and it learns."""
    make, loss, options = FAMILIES[family]
    forward.assert_builds_and_learns(make(), loss, options)


def test_running_statistics_are_buffers_that_no_update_holds():
    """They are in the artifact, by name and frozen, and count as no parameters."""
    artifact = build_artifact(batch_norm(), loss=CLASSES, batch_norm="frozen", expect_params=24 + 8 + 96 + 3)
    kinds = {parameter.name: (parameter.kind, parameter.role) for parameter in artifact.manifest.parameters}
    assert kinds["bn.mean"] == kinds["bn.var"] == ("buffer", "frozen")
    assert kinds["bn.w"] == ("weight", "trainable")
    assert {tensor.name for tensor in artifact.layout.tensors} == {
        name for name, entry in kinds.items() if entry == ("weight", "trainable")
    }
    assert artifact.frozen_weights().keys() == {"bn.mean", "bn.var"}


def test_only_the_head_is_trained():
    """Frozen weights come from the artifact, take part in the forward pass, and stay."""
    artifact = build_artifact(cnn(), loss=CLASSES, train=["head.*"], expect_params=80 + 16 + 438 + 21)
    assert [tensor.name for tensor in artifact.layout.tensors] == ["head.w", "head.b"]
    step = onnx.load_from_string(artifact.read("step.onnx")).graph
    assert {value.name for value in step.output} >= {"w.head.w.new", "v.head.b.new"}
    assert not any("conv" in value.name for value in step.output)
    assert {value.name for value in step.input} >= {"w.conv1.w", "w.norm.b"}
    whole = onnx.load_from_string(build_artifact(cnn(), loss=CLASSES).read("step.onnx")).graph
    assert len(step.node) < len(whole.node) / 2


def test_frozen_weights_matter(monkeypatch):
    """Another value of a frozen weight gives another output: they are not left at what they were drawn as."""
    artifact = build_artifact(cnn(), loss=CLASSES, train=["head.*"])
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    x = draw_batch(artifact, np.random.PCG64(5), 4).x
    before = RUNTIMES["numpy"].open(artifact).infer(weights, x)
    frozen = artifact.frozen_weights()
    monkeypatch.setattr(
        type(artifact), "frozen_weights", lambda self: frozen | {"conv2.b": frozen["conv2.b"] + 1}
    )
    after = RUNTIMES["numpy"].open(artifact).infer(weights, x)
    assert np.abs(after - before).max() > 1e-3


def test_a_pattern_that_matches_nothing_lists_the_names():
    """A typing error is found at the build."""
    with pytest.raises(ArtifactError, match="no parameter matches") as caught:
        build_artifact(cnn(), loss=CLASSES, train=["haed.*"])
    assert "head.w" in caught.value.hint
