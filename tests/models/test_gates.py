"""The gates must turn red: each is shown a build that is wrong in the way that it is there for."""

from dataclasses import replace

import numpy as np
import pytest

from fl_protocol.errors import ArtifactError
from models.build import build_artifact, gates, lower, rules
from models.runtime.choose import RuntimeTrial, try_runtime
from models.runtime.numpy_ops import KERNELS
from models.zoo.mlp import mlp


def build():
    """The model that every test here builds."""
    return build_artifact(mlp((4, 6, 5, 3), activation="Tanh"), loss="softmax_cross_entropy")


def half(site):
    """Tanh's rule, wrong by a factor."""
    return (site.graph.op("Mul", site.dy, site.graph.constant(0.5)),)


def no_bias(site):
    """Gemm's rule, the bias forgotten."""
    return (*rules._gemm(site)[:2], site.graph.op("Mul", rules._gemm(site)[2], site.graph.constant(0)))


@pytest.mark.parametrize(("op", "wrong"), [("Tanh", half), ("Gemm", no_bias)])
def test_a_wrong_gradient_rule_is_found_on_the_model(monkeypatch, op, wrong):
    """The directional check names the parameter whose gradient is off."""
    monkeypatch.setitem(rules.RULES, op, wrong)
    with pytest.raises(ArtifactError, match=r"gradient of 'layer\d\.(weight|bias)'"):
        build()


def test_a_wrong_lowering_is_found_by_comparing_with_the_source(monkeypatch):
    """The artifact must compute what the exported model computes."""
    monkeypatch.setitem(lower.LOWERINGS, "Tanh", lambda graph, node: graph.op("Sigmoid", node.input[0]))
    with pytest.raises(ArtifactError, match="source model"):
        build()


def test_a_wrong_kernel_is_found_by_the_other_runtime(monkeypatch):
    """A forward kernel and its gradient that are wrong together still disagree with onnxruntime."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(KERNELS, "OneHot", lambda a, i, d, v: np.eye(int(d), dtype=v.dtype)[(i + 1) % int(d)])
    with pytest.raises(ArtifactError, match="onnx runtime: the golden steps deviate"):
        build()


@pytest.mark.parametrize(("deviation", "steps"), [(2e-5, 2), (2e-3, None)])
def test_steps_on_which_a_runtime_rounds_otherwise_are_exchanged(monkeypatch, deviation, steps):
    """A unit on the kink of its ReLU deviates a little and by chance; what deviates much is wrong at once."""
    tried = []

    def once(name, artifact):
        tried.append(artifact.manifest.files["golden.npz"].sha256)
        trial = try_runtime(name, artifact)
        return replace(trial, deviation=deviation, reason="off") if len(tried) == 1 else trial

    expected = build().manifest.files["golden.npz"].sha256
    monkeypatch.setattr(gates, "try_runtime", once)
    if steps is None:
        with pytest.raises(ArtifactError, match="off"):
            build()
        return
    built = build().manifest.files["golden.npz"].sha256
    assert (tried[0], tried[-1]) == (expected, built)
    assert len(set(tried)) == steps


def test_a_runtime_that_deviates_at_all_steps_is_refused(monkeypatch):
    """However little."""
    monkeypatch.setattr(
        gates,
        "try_runtime",
        lambda name, artifact: RuntimeTrial(runtime=name, deviation=2e-5, reason="the golden steps deviate"),
    )
    with pytest.raises(ArtifactError, match="golden steps deviate"):
        build()
