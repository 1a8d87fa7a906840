"""One participation: what is trained, counted, evaluated and encoded."""

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.graph_trainer import GraphTrainer
from edge_agent.jobs import JobFailed, Trained
from edge_agent.participation import SampleParts, participate, training_seed
from edge_agent.tensor_record import unpack_record
from edge_agent.trainer import ArraySamples, TrainingResult
from edge_agent.trainer_fault import TrainerFault
from fl_protocol.codec import codec_for, codec_seed, decode, decode_model, encode_model
from fl_protocol.errors import CodecError, ConfigError, LayoutError
from fl_protocol.layout import TensorLayout
from fl_protocol.plan import TrainingPlan
from models.runtime import RUNTIMES, split_flat
from models.zoo import digits

LAYOUT = TensorLayout.of([("w", (3, 1))])
PUBLISHED = encode_model(np.array([1, 2, 3], np.float32), LAYOUT)


class LinearTrainer:
    """The trainer of the README: least squares by gradient descent."""

    def train(self, weights, samples, plan, should_stop):
        w = weights["w"].copy()
        steps = 0
        for x, y in samples.batches(plan.batch_size, epochs=plan.epochs, seed=plan.seed):
            if should_stop():
                break
            w -= plan.lr * x.T @ (x @ w - y) / len(x)
            steps += 1
        return TrainingResult({"w": w}, steps=steps)

    def evaluate(self, weights, samples):
        x, y = samples.all()
        return {"squared_error": float(((x @ weights["w"] - y) ** 2).sum())}


class Returns:
    """A trainer that returns what it was made with."""

    def __init__(self, weights, steps=1, sums=None):
        self.result = TrainingResult(weights, steps=steps)
        self.sums = sums or {}

    def train(self, weights, samples, plan, should_stop):
        return self.result

    def evaluate(self, weights, samples):
        return self.sums


class PersonalTrainer(LinearTrainer):
    """Learns the inclination, which is shared, and an offset of this device's own."""

    def __init__(self, *, silent: bool = False):
        self.silent = silent

    def train(self, weights, samples, plan, should_stop):
        assert not weights["offset"].flags.writeable
        x, y = samples.all()
        offset = np.array((y - x @ weights["w"]).mean(), np.float32)
        trained = {"w": weights["w"] + 1} | ({} if self.silent else {"offset": offset})
        return TrainingResult(trained, steps=2, sums={"grad_norm": 3.5, "loss": 1.0})

    def evaluate(self, weights, samples):
        return {"loss": float(weights["offset"])}


def linear_samples(count: int = 50, seed: int = 0) -> ArraySamples:
    x = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return ArraySamples(x, x @ np.array([[3], [2], [1]], np.float32))


@pytest.fixture
def job(train_job):
    return train_job(codec="float32", fingerprint=LAYOUT.fingerprint)


def run(job, trainer, *, training=None, stop=lambda steps: False, published=PUBLISHED, **options):
    samples = SampleParts(
        training=linear_samples() if training is None else training, held_out=linear_samples(20, 1)
    )
    return participate(
        job, layout=LAYOUT, published=published, trainer=trainer, samples=samples, should_stop=stop, **options
    )


def decoded(trained: Trained, job) -> np.ndarray:
    return decode(codec_for(job.codec), trained.payload, LAYOUT, codec_seed(trained.update_id))


def test_the_update_is_what_training_changed(job):
    """Payload = trained - published; a user's trainer needs no graph."""
    job = replace(job, plan=TrainingPlan(epochs=40, batch_size=10, lr=0.1))
    trained = run(job, LinearTrainer())
    assert isinstance(trained, Trained)
    assert np.allclose(decoded(trained, job), [2, 0, -2], atol=1e-3)
    assert (trained.update_id, trained.num_examples) == (job.update_id, 50)
    assert (trained.steps_done, trained.steps_planned) == (200, 200)
    assert trained.metrics["before.count"] == trained.metrics["after.count"] == 20
    assert trained.metrics["after.squared_error"] < 1e-3 < trained.metrics["before.squared_error"]


def test_the_examples_counted_are_capped(job):
    """A device with many samples weighs no more than the task allows."""
    assert run(replace(job, max_examples=7), LinearTrainer()).num_examples == 7


def test_a_training_cut_short_counts_for_its_share(job):
    """Steps done are below steps planned, and the update is that of the steps done."""
    job = replace(job, plan=TrainingPlan(epochs=2, batch_size=10, lr=0.1))
    trained = run(job, LinearTrainer(), stop=lambda steps: steps >= 3)
    assert (trained.steps_done, trained.steps_planned) == (3, 10)
    whole = run(job, LinearTrainer())
    assert not np.array_equal(decoded(trained, job), decoded(whole, job))


def test_a_trainer_may_count_in_the_integers_of_numpy(job):
    """They do not travel: an update's header holds plain ones."""
    trained = run(job, Returns({"w": np.zeros((3, 1))}, steps=np.int64(1)))
    assert type(trained.steps_done) is int


@pytest.mark.parametrize("sums", [{f"s{i}": 1.0 for i in range(16)}, {"s" * 65: 1.0}])
def test_sums_that_no_update_can_carry_are_refused_before_training(job, sums):
    """The coordinator would refuse the update as malformed, version after version."""
    with pytest.raises(ConfigError, match="sums"):
        run(job, Returns({"w": np.zeros((3, 1))}, sums=sums))


def test_no_step_no_update(job):
    """A deadline that passed before the first step gives nothing to send; a later try may."""
    failed = run(job, LinearTrainer(), stop=lambda steps: True)
    assert failed == JobFailed(reason="the time allowed ended before the first step", retryable=True)


def test_no_sample_no_update(job):
    """The gates count samples, but the app may delete them meanwhile."""
    failed = run(job, LinearTrainer(), training=ArraySamples(np.zeros((0, 3)), np.zeros((0, 1))))
    assert isinstance(failed, JobFailed)
    assert failed.retryable


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_give_no_update(job, bad):
    """A training that diverged is reported; the same one would diverge again."""
    weights = np.array([[1], [bad], [3]], np.float32)
    failed = run(job, Returns({"w": weights}))
    assert isinstance(failed, JobFailed)
    assert not failed.retryable
    assert "diverged" in failed.reason


@pytest.mark.parametrize(
    "weights",
    [{}, {"w": np.zeros(3)}, {"w": np.zeros((3, 1)), "extra": np.zeros(1)}, {"v": np.zeros((3, 1))}],
)
def test_a_trainer_that_returns_other_tensors_is_refused(job, weights):
    """Missing, misshapen or additional tensors are named."""
    with pytest.raises(LayoutError):
        run(job, Returns(weights))


def personal(offset: float) -> dict[str, np.ndarray]:
    tensor = np.array(offset, np.float32)
    tensor.setflags(write=False)
    return {"offset": tensor}


def test_personal_tensors_stay_on_the_device(job):
    """Trained, evaluated before and after as this device has them, and not in the payload."""
    trained = run(job, PersonalTrainer(), personal=personal(5.0))
    assert np.array_equal(decoded(trained, job), np.ones(3, np.float32))
    _, kept = unpack_record(trained.device_state, "the state")
    assert kept.keys() == {"offset"}
    assert kept["offset"].shape == ()
    assert trained.metrics["before.loss"] == 5.0
    assert trained.metrics["after.loss"] == float(kept["offset"]) != 5.0
    assert run(job, LinearTrainer()).device_state == b""


def test_a_trainer_may_leave_personal_tensors_as_they_are(job):
    """Those that it does not return."""
    trained = run(job, PersonalTrainer(silent=True), personal=personal(5.0))
    assert unpack_record(trained.device_state, "the state")[1]["offset"] == 5.0


@pytest.mark.parametrize(("offset", "says"), [(np.nan, "diverged"), (np.zeros(2), "offset")])
def test_personal_tensors_that_cannot_be_kept_give_no_update(job, offset, says):
    """Not finite, or of another shape: the device goes on with those it has."""
    trainer = Returns({"w": np.zeros((3, 1)), "offset": offset})
    if says == "diverged":
        assert says in run(job, trainer, personal=personal(1.0)).reason
    else:
        with pytest.raises(LayoutError, match=says):
            run(job, trainer, personal=personal(1.0))


def test_figures_of_the_training_go_under_after(job):
    """As far as there is room, and none in place of what was measured on held-out samples."""
    trained = run(job, PersonalTrainer(), personal=personal(5.0))
    assert trained.metrics["after.grad_norm"] == 3.5
    assert trained.metrics["after.loss"] != 1.0
    full = Returns({"w": np.zeros((3, 1))}, sums={f"s{i}": 1.0 for i in range(15)})
    full.result = TrainingResult({"w": np.zeros((3, 1))}, steps=1, sums={"grad_norm": 1.0, "s0": 2.0})
    assert len(run(job, full).metrics) == 2 * 16


def test_a_cancelled_training_gives_no_update(job):
    """Nobody waits for it, and its evaluation would cost time."""
    failed = run(job, LinearTrainer(), stop=lambda steps: steps >= 3, cancelled=lambda: True)
    assert failed == JobFailed(reason="cancelled", retryable=True)


def test_a_trainer_may_return_float64_and_count_more_steps_than_planned(job):
    """What other libraries give is converted; the header stays one that the coordinator takes."""
    trained = run(job, Returns({"w": np.array([[2.0], [2.0], [3.0]])}, steps=10_000))
    assert np.array_equal(decoded(trained, job), [1, 0, 0])
    assert trained.steps_done == trained.steps_planned


def test_weights_given_to_a_trainer_are_read_only(job):
    """The base must not change under the delta."""

    class Scribbler(LinearTrainer):
        def train(self, weights, samples, plan, should_stop):
            weights["w"][0] = 7

    with pytest.raises(TrainerFault, match="read-only"):
        run(job, Scribbler())


def test_sums_that_no_message_can_carry_are_left_out(job):
    """An infinite loss must not make the whole update malformed."""
    sums = {"loss": float("inf"), "other": float("nan"), "huge": 1e39, "good": 2.0}
    trained = run(job, Returns({"w": np.zeros((3, 1))}, sums=sums))
    assert trained.metrics == {
        "before.good": 2.0,
        "before.count": 20.0,
        "after.good": 2.0,
        "after.count": 20.0,
    }


def test_without_held_out_samples_there_are_no_metrics(job):
    """A device with few samples trains all the same."""
    empty = SampleParts(training=linear_samples(), held_out=ArraySamples(np.zeros((0, 3)), np.zeros((0, 1))))
    trained = participate(
        job,
        layout=LAYOUT,
        published=PUBLISHED,
        trainer=LinearTrainer(),
        samples=empty,
        should_stop=lambda steps: False,
    )
    assert trained.metrics == {}


def test_what_does_not_fit_is_an_error(job):
    """Another layout, damaged weights, an unknown codec."""
    with pytest.raises(LayoutError, match="layout"):
        run(replace(job, fingerprint=b"other fp"), LinearTrainer())
    with pytest.raises(CodecError):
        run(job, LinearTrainer(), published=PUBLISHED + b"x")
    with pytest.raises(CodecError):
        run(replace(job, codec="gzip"), LinearTrainer())


def test_the_training_seed_is_the_devices_and_the_bases(version):
    """Frozen: another device or base trains in another order, and a retry in the same."""
    seed = training_seed(b"a" * 32, version(1))
    assert seed == training_seed(b"a" * 32, version(1)) == 490221688
    assert len({seed, training_seed(b"b" * 32, version(1)), training_seed(b"a" * 32, version(2))}) == 3


@pytest.mark.parametrize(
    "codec",
    [
        "float32",
        "float16",
        "int8",
        "eden(bits=1)",
        "eden(bits=4)",
        "eden(bits=1,keep=0.25)",
        "eden(bits=2,keep=0.25)",
    ],
)
def test_the_same_participation_gives_the_same_bytes(job, codec):
    """Codec seed from the update id, training seed from device and base: a retry is the same update."""
    job = replace(job, codec=codec)
    assert run(job, LinearTrainer()).payload == run(job, LinearTrainer()).payload


def test_the_step_graph_learns_digits(artifact, train_job):
    """The default trainer: loss falls, FedProx and max_steps are obeyed, the rows may be stored as images."""
    trainer = GraphTrainer(artifact, RUNTIMES["numpy"].open(artifact))
    images = digits.load()
    x = images.x.reshape(-1, 8, 8)
    samples = SampleParts(
        training=ArraySamples(x[:300], images.y[:300]),
        held_out=ArraySamples(x[300:700], images.y[300:700]),
    )
    published = encode_model(artifact.initial_weights(), artifact.layout)
    results = {}
    for name, plan in {
        "plain": TrainingPlan(epochs=5, batch_size=20, lr=0.3, momentum=0.5),
        "prox": TrainingPlan(epochs=5, batch_size=20, lr=0.3, momentum=0.5, mu=1.0),
        "short": TrainingPlan(epochs=5, batch_size=20, lr=0.3, max_steps=7),
    }.items():
        results[name] = participate(
            train_job(plan=plan, codec="float32"),
            layout=artifact.layout,
            published=published,
            trainer=trainer,
            samples=samples,
            should_stop=lambda steps: False,
        )
    plain = results["plain"]
    assert plain.metrics["before.count"] == plain.metrics["after.count"] == 400
    assert plain.metrics["after.correct"] > 300 > plain.metrics["before.correct"]
    assert plain.metrics["after.loss"] < plain.metrics["before.loss"] / 2
    assert (plain.steps_done, plain.steps_planned) == (75, 75)
    assert (results["short"].steps_done, results["short"].steps_planned) == (7, 7)
    norm = {name: np.linalg.norm(np.frombuffer(done.payload, "<f4")) for name, done in results.items()}
    assert norm["prox"] < 0.7 * norm["plain"]
    base = decode_model(published, artifact.layout)
    evaluated = trainer.evaluate(split_flat(base, artifact.layout), samples.held_out)
    assert evaluated["loss"] == pytest.approx(plain.metrics["before.loss"], rel=1e-5)


def test_samples_that_are_not_the_models_input_are_named(artifact):
    """The message tells both shapes."""
    trainer = GraphTrainer(artifact, RUNTIMES["numpy"].open(artifact))
    weights = dict.fromkeys(("w",), np.zeros(1, np.float32))
    with pytest.raises(LayoutError, match=r"\[63\].*\[64\]"):
        trainer.evaluate(weights, ArraySamples(np.zeros((5, 63)), np.zeros(5)))
    with pytest.raises(LayoutError, match="y of shape"):
        trainer.evaluate(weights, ArraySamples(np.zeros((5, 64)), np.zeros((5, 0))))


@pytest.mark.parametrize("stranger", [-1, 10])
def test_a_class_that_the_model_does_not_know_is_refused(artifact, stranger):
    """Its rows would count as rows without loss: labels from 1 to 10 would look like a good model."""
    trainer = GraphTrainer(artifact, RUNTIMES["numpy"].open(artifact))
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    samples = ArraySamples(np.zeros((5, 64), np.float32), np.array([0, 9, 3, stranger, 4]))
    with pytest.raises(LayoutError, match="classes that the model has not: it tells 10 apart") as caught:
        trainer.evaluate(weights, samples)
    assert "from 0 to 9" in caught.value.hint
    assert str(stranger) not in caught.value.args[0].replace("10 apart", "")
    with pytest.raises(LayoutError, match="classes that"):
        trainer.train(weights, samples, TrainingPlan(epochs=1, batch_size=5, lr=0.1), lambda steps=0: False)


def test_what_an_update_leaves_out_goes_into_the_next(train_job):
    """Of three elements one travels; what is left comes back with the next job, and is in its update."""
    job = train_job(codec="sparse(bits=1,keep=0.3)", fingerprint=LAYOUT.fingerprint)
    trainer = Returns({"w": np.array([[4], [4], [4]], np.float32)})  # deltas 3, 2, 1
    first = run(job, trainer)
    assert decoded(first, job).tolist() == [3, 0, 0]
    second = run(replace(job, codec_state=first.codec_state), trainer)
    assert np.allclose(decoded(second, job), [0, 4, 0], atol=0.6)
    assert decoded(run(job, trainer), job).tolist() == [3, 0, 0]


def test_a_codec_that_keeps_nothing_leaves_nothing(job):
    """An old residual is neither used nor handed on."""
    trainer = Returns({"w": np.array([[4], [4], [4]], np.float32)})
    trained = run(replace(job, codec_state=b"of another codec"), trainer)
    assert trained.codec_state == b""
    assert decoded(trained, job).tolist() == [3, 2, 1]
