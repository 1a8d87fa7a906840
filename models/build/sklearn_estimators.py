"""``from_sklearn``: a fitted scikit-learn estimator becomes a training artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.build.agreement import check_same_output
from models.build.build_options import BuildOptions
from models.build.builder import build_artifact
from models.runtime.artifact import TrainingArtifact
from models.runtime.onnx_reader import OPSET

__all__ = ["from_sklearn"]

Array = NDArray[np.float32]

_ROWS = 5
_MEAN, _SCALE = "scaler.mean", "scaler.scale"
_ACTIVATIONS = MappingProxyType({"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""})
_LINEAR = ("LogisticRegression", "SGDClassifier", "LinearRegression", "Ridge", "SGDRegressor")
"""Estimators of one linear layer."""
_HAVE_LOSS = ("SGDClassifier", "SGDRegressor", "MLPRegressor")
_LOSSES = MappingProxyType({"log_loss": "", "squared_error": "mse", "huber": "huber"})
"""Losses of scikit-learn that have a counterpart; that of ``log_loss`` depends on the number of classes."""
_TAKEN = "MLPClassifier, MLPRegressor, " + ", ".join(_LINEAR) + ", alone or behind a StandardScaler"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A linear layer: ``weight`` is float32[in, out], or [out, in] where ``transposed``."""

    weight: tuple[str, Array]
    bias: tuple[str, Array] | None
    transposed: bool
    activation: str = ""

    @property
    def inputs(self) -> int:
        """How many numbers go in."""
        return int(self.weight[1].shape[1 if self.transposed else 0])

    @property
    def outputs(self) -> int:
        """How many come out."""
        return int(self.weight[1].shape[0 if self.transposed else 1])


def from_sklearn(
    estimator: Any, *, loss: str | None = None, **options: Unpack[BuildOptions]
) -> TrainingArtifact:
    """Build a training artifact of a fitted estimator; ``artifact.save(folder)`` or ``out=`` writes it.

    Taken are MLPClassifier, MLPRegressor, LogisticRegression, SGDClassifier, LinearRegression, Ridge and
    SGDRegressor, alone or in a Pipeline behind a StandardScaler, which becomes the frozen weights
    ``scaler.mean`` and ``scaler.scale``. Weights are called as scikit-learn calls them: ``coefs_.0``,
    ``intercepts_.0`` of networks, ``coef_`` and ``intercept_`` of the others.

    The output is what ``predict_proba`` gives (of two classes the second's alone), or else
    ``decision_function`` or ``predict``. Where ``loss`` is not given, several classes have
    ``softmax_cross_entropy`` (labels: int32, the place in ``classes_``), two classes and several labels
    ``sigmoid_cross_entropy`` (labels: float32[1] or [outputs], 0 or 1), regressors ``mse`` or ``huber``.
    ``classes_`` become ``class_names``. Penalties (``alpha``, ``C``) are no part of an artifact;
    ``optimizer="adamw"`` has weight decay. ``options`` are those of ``build_artifact``.

    Raises:
        ArtifactError: another kind of estimator, one that is not fitted, or a loss without a counterpart.
        RuntimeUnavailable: scikit-learn is not installed.
    """
    _check_fitted(estimator)
    steps = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    *before, last = [step for step in steps if step not in ("passthrough", None)]
    layers, scaler = _layers(last), _scaler(before)
    outputs = layers[-1].outputs
    ending = _ending(last, outputs)
    chosen = loss or _loss(last, outputs)
    tensors = dict(scaler)
    tensors |= dict(pair for layer in layers for pair in (layer.weight, layer.bias) if pair is not None)
    if scaler and options.get("train") is None:
        options["train"] = [name for name in tensors if name not in scaler]
    if not options.get("class_names") and hasattr(last, "classes_"):
        options["class_names"] = [str(name) for name in np.asarray(last.classes_).tolist()]
    options["name"] = options.get("name") or type(last).__name__.lower()
    out = options.pop("out", None)
    artifact = build_artifact(
        _graph(layers, scaler, tensors, ending),
        loss=chosen,
        expect_params=sum(array.size for array in tensors.values()),
        **options,
    )
    x = np.random.default_rng(5).standard_normal((_ROWS, layers[0].inputs)).astype(np.float32)
    if scaler:
        x = x * scaler[_SCALE] + scaler[_MEAN]
    check_same_output(artifact, x, _predicted(estimator, x, ending, outputs), "the estimator")
    return artifact if out is None else artifact.save(out)


def _check_fitted(estimator: Any) -> None:
    try:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise RuntimeUnavailable(
            f"scikit-learn cannot be imported: {error}", hint="pip install scikit-learn"
        ) from None
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise ArtifactError(
            f"the {type(estimator).__name__} is not fitted",
            hint="fit it, on a few rows of every class: that makes its weights and their shapes",
        ) from None
    except TypeError:
        raise _unknown(estimator) from None


def _unknown(step: Any) -> ArtifactError:
    return ArtifactError(f"{type(step).__name__} is not among the estimators that can be taken", hint=_TAKEN)


def _layers(estimator: Any) -> list[_Layer]:
    kind = type(estimator).__name__
    if kind in ("MLPClassifier", "MLPRegressor"):
        pairs = list(zip(estimator.coefs_, estimator.intercepts_, strict=True))
        return [
            _Layer(
                weight=(f"coefs_.{at}", np.asarray(weight, np.float32)),
                bias=(f"intercepts_.{at}", np.asarray(bias, np.float32)),
                transposed=False,
                activation=_ACTIVATIONS[estimator.activation] if at < len(pairs) - 1 else "",
            )
            for at, (weight, bias) in enumerate(pairs)
        ]
    if kind in _LINEAR:
        weight = np.atleast_2d(np.asarray(estimator.coef_, np.float32))
        bias = np.broadcast_to(np.asarray(estimator.intercept_, np.float32), weight.shape[:1])
        fitted = bool(estimator.fit_intercept)
        return [
            _Layer(weight=("coef_", weight), bias=("intercept_", bias) if fitted else None, transposed=True)
        ]
    raise _unknown(estimator)


def _scaler(before: Sequence[Any]) -> dict[str, Array]:
    """Mean and scale of a StandardScaler in front, float32[features] each; empty where there is none."""
    if not before:
        return {}
    for step in before:
        if type(step).__name__ != "StandardScaler" or len(before) > 1:
            raise _unknown(step)
    features = int(before[0].n_features_in_)
    return {
        _MEAN: np.asarray(before[0].mean_ if before[0].with_mean else np.zeros(features), np.float32),
        _SCALE: np.asarray(before[0].scale_ if before[0].with_std else np.ones(features), np.float32),
    }


def _loss(estimator: Any, outputs: int) -> str:
    """The loss that goes with an estimator."""
    theirs = getattr(estimator, "loss", "") if type(estimator).__name__ in _HAVE_LOSS else ""
    # Of Huber's loss there is the one that is linear from an error of 1 on.
    if (theirs and theirs not in _LOSSES) or (theirs == "huber" and estimator.epsilon != 1):
        fitting = (
            "'log_loss'" if hasattr(estimator, "classes_") else "'squared_error', or 'huber' and epsilon=1.0"
        )
        raise ArtifactError(
            f"{type(estimator).__name__}(loss={theirs!r}) has no counterpart here",
            hint=f"fit it with loss={fitting}, or name another: from_sklearn(estimator, loss=...)",
        )
    if not hasattr(estimator, "classes_"):
        return _LOSSES.get(theirs) or "mse"
    several = _ending(estimator, outputs) == "Softmax" or (theirs and outputs > 1)
    return "softmax_cross_entropy" if several else "sigmoid_cross_entropy"


def _ending(estimator: Any, outputs: int) -> str:
    """The operator that makes probabilities of scores; empty where the estimator makes none of each row."""
    if not hasattr(estimator, "classes_") or not hasattr(estimator, "predict_proba"):
        return ""
    if hasattr(estimator, "out_activation_"):
        return "Softmax" if estimator.out_activation_ == "softmax" else "Sigmoid"
    if outputs == 1:
        return "Sigmoid"
    return "Softmax" if type(estimator).__name__ == "LogisticRegression" else ""


def _graph(
    layers: Sequence[_Layer], scaler: Mapping[str, Array], tensors: Mapping[str, Array], ending: str
) -> onnx.ModelProto:
    nodes, value = [], "x"
    if scaler:
        nodes.append(helper.make_node("Sub", [value, _MEAN], ["centred"], name="centred"))
        nodes.append(helper.make_node("Div", ["centred", _SCALE], ["scaled"], name="scaled"))
        value = "scaled"
    for at, layer in enumerate(layers):
        named = [name for name, _ in (layer.weight, layer.bias or ("", None)) if name]
        scores = f"layer{at}"
        nodes.append(
            helper.make_node("Gemm", [value, *named], [scores], name=scores, transB=int(layer.transposed))
        )
        value = scores
        if layer.activation:
            value = f"active{at}"
            nodes.append(helper.make_node(layer.activation, [scores], [value], name=value))
    if ending:
        nodes.append(helper.make_node(ending, [value], ["probabilities"], name="probabilities"))
        value = "probabilities"
    shapes = [["batch", layers[0].inputs], ["batch", layers[-1].outputs]]
    graph = helper.make_graph(
        nodes,
        "estimator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shapes[1])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def _predicted(estimator: Any, x: Array, ending: str, outputs: int) -> Array:
    """What the estimator itself makes of the rows: float32[rows, outputs]."""
    if ending:
        found = np.asarray(estimator.predict_proba(x))[:, -outputs:]
    elif hasattr(estimator, "decision_function"):
        found = np.asarray(estimator.decision_function(x))
    else:
        found = np.asarray(estimator.predict(x))
    return found.astype(np.float32).reshape(len(x), outputs)
