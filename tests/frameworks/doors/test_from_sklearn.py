"""`from_sklearn` with real estimators."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import lichen
from fl_protocol.errors import ArtifactError
from models.runtime import RUNTIMES, open_session, split_flat

FOR_ALL = ("onnx", "tflite")
DRAW = np.random.default_rng(6)
X = DRAW.standard_normal((120, 6)) * 3 + 1
NAMES = np.array(["cat", "dog", "eel"])[DRAW.integers(0, 3, 120)]
YES = X[:, 0] > 1
LABELS = (X[:, :3] > 1).astype(int)
VALUE, PAIR = X[:, 0] - X[:, 1], X[:, :2]

SOFTMAX, SIGMOID = "softmax_cross_entropy", "sigmoid_cross_entropy"
SHORT = {"max_iter": 3, "random_state": 1}
ESTIMATORS = {
    "network, classes": (MLPClassifier((8,), **SHORT), NAMES, SOFTMAX, "predict_proba"),
    "network, yes or no": (MLPClassifier((8, 4), activation="tanh", **SHORT), YES, SIGMOID, "predict_proba"),
    "network, labels": (
        MLPClassifier((8,), activation="logistic", **SHORT),
        LABELS,
        SIGMOID,
        "predict_proba",
    ),
    "network, a value": (MLPRegressor(hidden_layer_sizes=(8,), **SHORT), VALUE, "mse", "predict"),
    "network, values": (
        MLPRegressor(hidden_layer_sizes=(8,), activation="identity", **SHORT),
        PAIR,
        "mse",
        "predict",
    ),
    "logistic, classes": (LogisticRegression(), NAMES, SOFTMAX, "predict_proba"),
    "logistic, yes or no": (LogisticRegression(fit_intercept=False), YES, SIGMOID, "predict_proba"),
    "sgd, classes": (SGDClassifier(loss="log_loss"), NAMES, SOFTMAX, "decision_function"),
    "sgd, yes or no": (SGDClassifier(loss="log_loss"), YES, SIGMOID, "predict_proba"),
    "linear": (LinearRegression(), VALUE, "mse", "predict"),
    "ridge, values": (Ridge(), PAIR, "mse", "predict"),
    "sgd, huber": (SGDRegressor(loss="huber", epsilon=1.0), VALUE, "huber", "predict"),
}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("case", ESTIMATORS)
def test_an_estimator_becomes_an_artifact(case, runtimes_of):
    """The loss that goes with it, the golden steps everywhere, and the estimator's own predictions."""
    estimator, y, loss, method = ESTIMATORS[case]
    estimator.fit(X, y)
    artifact = lichen.from_sklearn(estimator, runtimes=FOR_ALL)
    assert artifact.manifest.loss == loss
    classes = [str(name) for name in getattr(estimator, "classes_", [])]
    assert list(artifact.manifest.class_names) == classes
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    rows = X[:20].astype(np.float32)
    for runtime in runtimes_of(artifact):
        ours = RUNTIMES[runtime].open(artifact).infer(weights, rows)
        theirs = getattr(estimator, method)(rows).reshape(20, -1)[:, -ours.shape[1] :]
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize(
    ("network", "y"),
    [(MLPClassifier, DRAW.integers(0, 3, 16)), (MLPRegressor, DRAW.standard_normal(16))],
)
def test_a_network_trains_on_every_runtime_as_in_scikit_learn(network, y, runtimes_of, losses_of):
    """Five whole-batch steps of its own SGD with momentum and no penalty: the same losses."""
    x = DRAW.standard_normal((16, 6))
    estimator = network(
        hidden_layer_sizes=(8,),
        solver="sgd",
        # A regressor's loss is half the squared error, and so is its gradient.
        learning_rate_init=0.1 if network is MLPRegressor else 0.05,
        momentum=0.9,
        nesterovs_momentum=False,
        alpha=0.0,
        batch_size=16,
        max_iter=1,
        random_state=2,
    ).fit(x, y)
    artifact = lichen.from_sklearn(estimator, runtimes=FOR_ALL)
    # The optimizer keeps the velocity of the fit: artifacts begin at none, and so does a fresh one.
    del estimator._optimizer
    estimator.warm_start = True
    estimator.max_iter = 5
    estimator.loss_curve_ = []
    estimator.n_iter_ = 0
    estimator.fit(x, y)
    scale = 2 if network is MLPRegressor else 1
    labels = y.astype(np.int32) if network is MLPClassifier else y.astype(np.float32)[:, None]
    for runtime in runtimes_of(artifact):
        ours, _ = losses_of(artifact, runtime, x.astype(np.float32), labels)
        np.testing.assert_allclose(ours, scale * np.array(estimator.loss_curve_[-5:]), atol=1e-5, rtol=0)


def test_a_scaler_in_front_is_frozen(runtimes_of):
    """It travels once; what is behind it is trained."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, NAMES)
    artifact = lichen.from_sklearn(pipeline, runtimes=FOR_ALL)
    roles = {entry.name: entry.role for entry in artifact.manifest.parameters}
    assert roles == {
        "scaler.mean": "frozen",
        "scaler.scale": "frozen",
        "coef_": "trainable",
        "intercept_": "trainable",
    }
    session, _ = open_session(artifact, preference=runtimes_of(artifact))
    rows = X[:20].astype(np.float32)
    ours = session.infer(split_flat(artifact.initial_weights(), artifact.layout), rows)
    np.testing.assert_allclose(ours, pipeline.predict_proba(rows), atol=2e-5)


REFUSED = {
    "another estimator": (
        lambda: RandomForestClassifier(3).fit(X, NAMES),
        "RandomForestClassifier",
        "MLPClassifier",
    ),
    "another scaler": (
        lambda: make_pipeline(MinMaxScaler(), LogisticRegression()).fit(X, NAMES),
        "MinMaxScaler",
        "StandardScaler",
    ),
    "not fitted": (MLPClassifier, "is not fitted", "fit it"),
    "no counterpart": (lambda: SGDClassifier().fit(X, NAMES), "loss='hinge'", "'log_loss'"),
    "another huber": (lambda: SGDRegressor(loss="huber").fit(X, VALUE), "loss='huber'", "epsilon=1.0"),
    "no estimator": (lambda: X, "ndarray", "MLPClassifier"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused(case):
    """With the list of what can be taken."""
    make, reason, hint = REFUSED[case]
    with pytest.raises(ArtifactError) as caught:
        lichen.from_sklearn(make())
    assert reason in str(caught.value.args[0])
    assert hint in caught.value.hint
