"""Golden steps: what they catch, and what a damaged recording does."""

import contextlib
import io
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.runtime.golden import MAX_UNPACKED_BYTES, TOLERANCE, GoldenSteps, deviation
from models.runtime.numpy_runtime import NumpyRuntime
from models.zoo.forward import Network

HYPER = ("clip", "lr", "momentum", "mu")


class Tampered:
    """A session whose every result goes through a function that may change it."""

    def __init__(self, session, change):
        self._session, self._change = session, change
        self.name = session.name

    def step(self, *arguments, **named):
        """The real step, changed."""
        return self._change(self._session.step(*arguments, **named))

    def evaluate(self, *arguments):
        """The real evaluation."""
        return self._session.evaluate(*arguments)

    def infer(self, *arguments):
        """The real inference."""
        return self._session.infer(*arguments)


def test_recording_and_reading_are_inverse(small_artifact):
    """Batches, scalars and results survive the file."""
    content = small_artifact.read("golden.npz")
    golden = GoldenSteps.from_bytes(content, HYPER)
    assert len(golden.steps) == 3
    assert golden.to_bytes() == content
    assert len({len(step.batch.x) for step in golden.steps}) == 3
    assert all(0 in step.batch.sample_weight for step in golden.steps)
    assert any(step.hyper["clip"] > 0 for step in golden.steps)


def one_weight(result):
    """One weight of the 59 moved by 1e-4, between the samples or on one."""
    result.weights["layer1.weight"].reshape(-1)[17] += 1e-4
    return result


def slot_forgotten(result):
    """The optimizer's state lost."""
    for slot in result.slots.values():
        slot[...] = 0
    return result


def wrong_sum(result):
    """The mean instead of the sum."""
    result.sums["loss"] /= result.sums["weight"]
    return result


def not_a_number(result):
    """One NaN."""
    result.weights["layer2.bias"][0] = np.nan
    return result


@pytest.fixture(scope="module")
def moody_artifact():
    """Running statistics of both roles, a personal head, units dropped, a correction."""
    net = Network("moody", [5], seed=4)
    value = net.batch_norm("norm1", net.linear("body", net.x, 8))
    value = net.batch_norm("norm2", net.linear("waist", net.activation("Relu", "active", value), 6))
    model = net.finish(net.linear("head", value, 3))
    layer = onnx.helper.make_node("Dropout", ["active"], ["dropped"], name="drop")
    reader = next(node for node in model.graph.node if "active" in node.input)
    reader.input[:] = ["dropped" if name == "active" else name for name in reader.input]
    model.graph.node.insert(list(model.graph.node).index(reader), layer)
    return build_artifact(
        model,
        loss="softmax_cross_entropy",
        batch_norm="averaged",
        personal=["norm2.*", "head.*"],
        correction=True,
    )


class Careless:
    """A session that gets one thing of a step wrong: ``step(session, weights, hyper, ...)`` does it."""

    def __init__(self, artifact, fault):
        self._session, self._fault = NumpyRuntime().open(artifact), fault

    def step(self, *arguments, **named):
        """The step, with its fault."""
        weights, slots, batch, hyper, anchor = arguments
        if self._fault == "seed":
            hyper = hyper | {"seed": hyper["seed"] + 1}
        if self._fault == "correction":
            named = {}
        result = self._session.step(weights, slots, batch, hyper, anchor, **named)
        if self._fault in result.weights:
            result.weights[self._fault] = weights[self._fault]
        return result

    def evaluate(self, *arguments):
        """The real evaluation."""
        return self._session.evaluate(*arguments)

    def infer(self, *arguments):
        """The real inference."""
        return self._session.infer(*arguments)


@pytest.mark.parametrize(
    "fault", ["norm1.running_var", "norm2.running_mean", "head.bias", "seed", "correction"]
)
def test_all_that_a_step_may_change_or_take_is_in_the_steps(moody_artifact, fault):
    """A statistic or a personal weight that is left behind, another seed, no correction."""
    assert deviation(moody_artifact, Careless(moody_artifact, "nothing")) < TOLERANCE / 4
    assert deviation(moody_artifact, Careless(moody_artifact, fault)) > 2 * TOLERANCE


@pytest.mark.parametrize("change", [one_weight, slot_forgotten, wrong_sum, not_a_number])
def test_a_runtime_that_is_slightly_wrong_deviates(small_artifact, change):
    """Far beyond the tolerance, NaN included: a comparison with NaN must not pass."""
    session = Tampered(NumpyRuntime().open(small_artifact), change)
    assert deviation(small_artifact, session) > 2 * TOLERANCE


def test_a_sound_runtime_stays_far_below_the_tolerance(small_artifact):
    """Room for other processors and compilers."""
    assert deviation(small_artifact, NumpyRuntime().open(small_artifact)) < TOLERANCE / 4


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_recording_is_read_or_refused(small_artifact, data):
    """Whatever the bytes, there is one kind of error."""
    content = bytearray(small_artifact.read("golden.npz"))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for damaged in (bytes(content), cut):
        with contextlib.suppress(ArtifactError):
            GoldenSteps.from_bytes(damaged, HYPER)


def test_a_recording_that_unpacks_without_end_is_refused():
    """The sizes are looked at before anything is unpacked."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.x.npy", bytes(MAX_UNPACKED_BYTES + 1))
    with pytest.raises(ArtifactError, match="unpacks to more"):
        GoldenSteps.from_bytes(content.getvalue(), HYPER)


def test_objects_in_a_recording_are_refused():
    """No pickle is ever opened."""
    content = io.BytesIO()
    np.savez(content, **{"0.x": np.array([{}], object)})
    with pytest.raises(ArtifactError, match="cannot be read"):
        GoldenSteps.from_bytes(content.getvalue(), HYPER)
