"""The gates: a build ends only if what it made is right, on this very model.

Each gate raises ``ArtifactError``; none of them trusts the part that it checks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.drawn_rows import draw_batch, draw_rows, initial_output, initial_tensors
from models.build.lift import Forward
from models.build.uniform import SEED
from models.runtime.artifact import TrainingArtifact
from models.runtime.choose import runtimes_for, try_runtime
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model
from models.runtime.session import Batch, Session, zero_slots

__all__ = ["check_gradients", "check_modes", "check_parameters", "check_runtimes", "check_same_model"]

_OUTPUT_TOLERANCE = 1e-4
_GRADIENT_TOLERANCE = 1e-4
_BY_CHANCE = 1e-3
_DIFFERENCES = (1e-6, 1e-7, 1e-8)
"""Tried in turn, to both sides: the slope bends where a ReLU's kink lies within one; a wrong gradient is
wrong at each."""
_ONE_SIDED = 3e-8
"""Tried first, against the loss where one stands: half the work, and nearly always exact enough."""
_ROWS = 5
_MANY = 1e9
_STILL = 1e-6
_REPORT = "this is a defect of the builder: please report it with the model"

Array = NDArray[Any]


def check_parameters(forward: Forward, expected: int | None) -> None:
    """The model has as many parameters as its owner believes; running statistics are none."""
    parameters = {name: it for name, it in forward.parameters.items() if name not in forward.buffers}
    count = sum(array.size for array in parameters.values())
    if expected is not None and count != expected:
        listed = "\n".join(
            f"  {name} {list(array.shape)} {forward.roles[name]}" for name, array in parameters.items()
        )
        raise ArtifactError(
            f"the model has {count} parameters, not {expected}:\n{listed}",
            hint="an exporter may have folded or dropped some: export without optimisation",
        )


def check_same_model(forward: Forward, artifact: TrainingArtifact) -> None:
    """``infer.onnx`` computes what the source model computes, and row by row."""
    name, rows, dtype = _source_input(forward.source)
    x = draw_rows(artifact, np.random.PCG64(1), rows)
    try:
        theirs = _run_source(forward.source, {name: x.astype(dtype)})
    except Exception as error:  # whatever the runtime makes of a foreign model
        raise ArtifactError(
            f"the source model does not run with {rows} rows: {error}",
            hint="export it with a dynamic batch dimension",
        ) from None
    ours = initial_output(artifact, x)
    if ours.shape != theirs.shape or not _close(ours, theirs):
        raise ArtifactError("the artifact does not compute what the source model computes", hint=_REPORT)
    x = draw_rows(artifact, np.random.PCG64(4), _ROWS)
    together = initial_output(artifact, x)
    alone = np.concatenate([initial_output(artifact, x[row : row + 1]) for row in range(_ROWS)])
    if not _close(together, alone):
        raise ArtifactError(
            "the model mixes the rows of a batch: a row's output depends on its neighbours",
            hint="normalise each row by itself (LayerNormalization, GroupNormalization), or with a "
            "BatchNormalization node, whose batch the builder knows",
        )


def check_gradients(forward: Forward, artifact: TrainingArtifact, session: Session) -> None:
    """The step's gradient is the slope of the loss that ``eval.onnx`` computes, for every parameter.

    ``session`` computes in double precision. Differences along one random direction per tensor, at weights
    moved a little off the initial ones: zero biases would put a whole layer on the kink of its ReLU. The
    step's gradient is what the optimizer's first slot takes up where all scalars are 0. A model that trains
    in another mode than it is evaluated in is held to the step's own loss.
    """
    bits = np.random.PCG64(2)
    draw = np.random.Generator(bits)
    weights: dict[str, Array] = {
        name: tensor.astype(np.float64) + 0.01 * draw.standard_normal(tensor.shape)
        for name, tensor in initial_tensors(artifact).items()
        if name in forward.trained
    }
    buffers = {name: it for name, it in initial_tensors(artifact).items() if name in forward.statistics}
    batch = draw_batch(artifact, bits, _ROWS)
    plain = dict.fromkeys(artifact.manifest.hyper, 0.0) | {"lr": 1.0}
    slots = session.step(weights | buffers, zero_slots(artifact), batch, plain, weights).slots
    first = artifact.manifest.slots[0]
    own_loss = None if _one_mode(forward) else _loss_of_step(artifact)

    def mean_loss(moved: Mapping[str, Array]) -> float:
        if own_loss is not None:
            return own_loss({**moved, **buffers}, batch)
        sums = session.evaluate(moved, batch)
        return sums["loss"] / sums["weight"]

    here = mean_loss(weights)
    for name, tensor in weights.items():
        direction = draw.standard_normal(tensor.shape)
        gradient = float((slots[f"{first}.{name}"] * direction).sum())

        moved = partial(_moved, weights, name, direction)
        slope = (mean_loss(moved(_ONE_SIDED)) - here) / _ONE_SIDED
        if _agree(slope, gradient):
            continue
        for difference in _DIFFERENCES:
            slope = (mean_loss(moved(difference)) - mean_loss(moved(-difference))) / (2 * difference)
            if _agree(slope, gradient):
                break
        else:
            raise ArtifactError(
                f"the gradient of {name!r} is {gradient:.6g} along a direction where the loss's slope is "
                f"{slope:.6g}",
                hint=_REPORT,
            )


def check_modes(forward: Forward, artifact: TrainingArtifact, session: Session) -> None:
    """A model evaluated with the statistics of a batch has the loss that it has while it trains on it, in
    a ``session`` of double precision.

    Those statistics are told from two steps: what a step makes of 0 and of 1 is linear in both. Not where
    units are dropped, nor where a layer is used twice and so sees two batches.
    """
    if not forward.statistics or SEED in artifact.manifest.hyper or not forward.moves_once:
        return
    weights = initial_tensors(artifact)
    batch = draw_batch(artifact, np.random.PCG64(6), _ROWS)
    # A variance is kept as that of all rows there may be; of so many, one more or less is the same.
    batch = replace(batch, sample_weight=batch.sample_weight.astype(np.float64) * _MANY)

    def next_statistics(start: float) -> tuple[float, dict[str, Array]]:
        given = {name: np.full_like(weights[name], start) for name in forward.statistics}
        hyper = dict.fromkeys(artifact.manifest.hyper, 0.0)
        result = session.step(weights | given, zero_slots(artifact), batch, hyper, weights)
        return result.sums["loss"], {name: result.weights[name] for name in given}

    (loss, of_zero), (_, of_one) = next_statistics(0), next_statistics(1)
    rates = {name: 1 - (of_one[name] - of_zero[name]) for name in of_zero}
    if any((rate <= _STILL).any() for rate in rates.values()):
        return  # statistics that no step moves
    told = {name: of_zero[name] / rate for name, rate in rates.items()}
    evaluated = session.evaluate(weights | told, batch)["loss"]
    if not abs(evaluated - loss) <= _OUTPUT_TOLERANCE * max(abs(loss), abs(evaluated)):
        raise ArtifactError(
            f"with the statistics of a batch the loss is {evaluated / _MANY:.6g} in evaluation and "
            f"{loss / _MANY:.6g} in training",
            hint=_REPORT,
        )


def check_runtimes(artifact: TrainingArtifact, *, other_steps: bool = False) -> bool:
    """Every runtime that is installed here reproduces the golden steps.

    Where there are ``other_steps`` to try, a small deviation is no error: ``False`` then. In a large network
    some unit may lie so close to the kink of its ReLU that rounding decides, and that is the steps' fault; a
    runtime that is wrong deviates at others too.
    """
    failed = [it for name in runtimes_for(artifact) if (it := try_runtime(name, artifact)).failed]
    if other_steps and all((trial.deviation or np.inf) <= _BY_CHANCE for trial in failed):
        return not failed
    for trial in failed:
        raise ArtifactError(f"the {trial.runtime} runtime: {trial.reason}", hint=_REPORT)
    return True


def _moved(
    weights: Mapping[str, Array], name: str, direction: Array, difference: float
) -> Mapping[str, Array]:
    return {**weights, name: weights[name] + difference * direction}


def _agree(slope: float, gradient: float) -> bool:
    scale = max(abs(slope), abs(gradient), 1e-3)
    return abs(slope - gradient) <= _GRADIENT_TOLERANCE * scale


def _one_mode(forward: Forward) -> bool:
    return not forward.statistics and SEED not in forward.training.inputs


def _loss_of_step(artifact: TrainingArtifact) -> Callable[[Mapping[str, Array], Batch], float]:
    """``loss / weight`` of ``step.onnx``, in double precision and without the rest of the step."""
    graph = read_model(artifact.read("step.onnx")).computing("loss", "weight")
    run = NumpyGraph(graph, precision=np.float64)
    fixed = {f"w.{name}": array for name, array in artifact.frozen_weights().items()}
    scalars = {name: np.zeros((), np.float32) for name in artifact.manifest.hyper}

    def loss(weights: Mapping[str, Array], batch: Batch) -> float:
        rows = {"x": batch.x, "y": batch.y, "sample_weight": batch.sample_weight}
        sums = run(fixed | scalars | rows | {f"w.{name}": array for name, array in weights.items()})
        return float(sums["loss"] / sums["weight"])

    return loss


def _source_input(model: onnx.ModelProto) -> tuple[str, int, Any]:
    """The name of the source model's input, how many rows it takes, and its dtype."""
    constants = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in constants)
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return value.name, tensor.shape.dim[0].dim_value or _ROWS, dtype


def _run_source(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, dict(feeds))[0])


def _close(a: Array, b: Array) -> bool:
    return bool(np.allclose(a, b, rtol=_OUTPUT_TOLERANCE, atol=_OUTPUT_TOLERANCE))
