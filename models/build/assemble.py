"""The three graphs of an artifact from one forward graph; their names are the contract of docs/protocol.md.

    step   w.* v.* a.* x y sample_weight lr momentum mu clip -> w.*.new v.*.new loss weight correct grad_norm
           (the slots ``v`` and the scalars are the optimizer's; frozen ``w.*`` come in only; personal ones
           have no anchor ``a``; running statistics have ``w.*.new`` alone; an optimizer that counts its
           steps has ``t`` and ``t.new`` besides; with dropout there is the scalar ``seed``, with correction
           the scalar ``correction`` and a ``c.*`` for each ``a.*``)
    eval   w.* x y sample_weight -> loss weight correct
    infer  w.* x -> output

``loss`` and ``correct`` are sums over the rows, each times its sample weight; ``weight`` is the sum of the
sample weights. The gradient is that of ``loss / max(weight, 1e-12)``. The step is in training mode: batch
normalisations use the batch's statistics, units are dropped; eval and infer are not.
"""

from collections.abc import Collection, Mapping, Sequence

from fl_protocol.errors import ArtifactError
from models.build.backward import backward
from models.build.cleanup import finished
from models.build.graph import BATCH, WorkingGraph
from models.build.lift import Forward
from models.build.losses import LOSSES
from models.build.metrics import METRICS
from models.build.optimizers import OPTIMIZERS
from models.build.roles import TRAINABLE
from models.build.transforms import add_correction, clip_by_global_norm, pull_to_anchor
from models.build.uniform import SEED
from models.runtime.session import CORRECTION, STEP_COUNTER

__all__ = ["assemble", "hyper_of"]

_EXTRA_HYPER: Mapping[str, float] = {"mu": 0.0, "clip": 0.0}
"""Scalars that every step graph has beside its optimizer's, with their defaults."""
_LEAST_WEIGHT = 1e-12
_ROWS = ("x", "y", "sample_weight")


def assemble(
    forward: Forward, *, loss: str, optimizer: str, metrics: Sequence[str], correction: bool = False
) -> dict[str, bytes]:
    """Build ``step.onnx``, ``eval.onnx`` and ``infer.onnx``.

    With ``correction`` the step takes a tensor for each trainable weight that is added to its gradient.

    Raises:
        ArtifactError: an unknown loss, metric or optimizer, or a model that cannot be trained.
    """
    for kind, name, known in [
        ("loss", loss, LOSSES),
        ("optimizer", optimizer, OPTIMIZERS),
        *(("metric", metric, METRICS) for metric in metrics),
    ]:
        if name not in known:
            raise ArtifactError(f"there is no {kind} {name!r}", hint=f"there are {', '.join(known)}")
    weights = [f"w.{name}" for name in forward.parameters]
    judged = forward.graph.copy()
    sums = _sums(judged, forward.output, loss, metrics)
    trained = forward.training.copy()
    trained_sums = _sums(trained, forward.training_output, loss, metrics)
    hyper = hyper_of(forward, optimizer, correction=correction)
    return {
        "step.onnx": _step(forward, trained, trained_sums, optimizer, hyper),
        "eval.onnx": finished(judged, "eval", [*weights, *_ROWS], sums),
        "infer.onnx": finished(forward.graph.copy(), "infer", [*weights, "x"], {"output": forward.output}),
    }


def hyper_of(forward: Forward, optimizer: str, *, correction: bool = False) -> dict[str, float]:
    """The scalar inputs of the step graph with their defaults."""
    hyper = {**OPTIMIZERS[optimizer].hyper, **_EXTRA_HYPER}
    if correction:
        hyper[CORRECTION] = 1.0
    if SEED in forward.training.inputs:
        hyper[SEED] = 0.0
    return hyper


def _sums(graph: WorkingGraph, output: str, loss: str, metrics: Sequence[str]) -> dict[str, str]:
    chosen = LOSSES[loss]
    y = graph.input("y", chosen.label_shape(graph.shape(output)), chosen.label)
    sample_weight = graph.input("sample_weight", [BATCH])
    rows = {"loss": chosen.rows(graph, output, y)}
    rows |= {METRICS[metric].total: METRICS[metric].rows(graph, output, y) for metric in metrics}
    sums = {
        name: graph.op("ReduceSum", graph.op("Mul", value, sample_weight), keepdims=0)
        for name, value in rows.items()
    }
    return {"loss": sums.pop("loss"), "weight": graph.op("ReduceSum", sample_weight, keepdims=0), **sums}


def _step(
    forward: Forward, graph: WorkingGraph, sums: Mapping[str, str], optimizer: str, scalars: Collection[str]
) -> bytes:
    chosen, names = OPTIMIZERS[optimizer], list(forward.trained)
    weights = {name: f"w.{name}" for name in names}
    least = graph.constant(_LEAST_WEIGHT)
    mean = graph.op("Div", sums["loss"], graph.op("Max", sums["weight"], least))
    graph.infer()
    by_input = backward(graph, {mean: graph.constant(1)}, list(weights.values()))
    gradients = {name: by_input[weights[name]] for name in names}

    hyper = [graph.input(name, []) for name in scalars]
    shared = [name for name in names if forward.roles[name] == TRAINABLE]
    anchors, corrections = (
        {name: graph.input(f"{kind}.{name}", graph.shape(weights[name])) for name in shared if wanted}
        for kind, wanted in (("a", True), ("c", CORRECTION in scalars))
    )
    slots = {
        name: {slot: graph.input(f"{slot}.{name}", graph.shape(weights[name])) for slot in chosen.slots}
        for name in names
    }
    counted: dict[str, str] = {}
    if chosen.counts:
        counted[STEP_COUNTER] = graph.op("Add", graph.input(STEP_COUNTER, []), graph.constant(1))
    gradients, norm = clip_by_global_norm(graph, gradients, "clip")
    gradients |= add_correction(graph, gradients, corrections)
    gradients |= pull_to_anchor(graph, gradients, weights, anchors)
    updated = {
        name: chosen.update(graph, weights[name], gradients[name], slots[name] | counted) for name in names
    }

    slot_inputs = [slots[name][slot] for slot in chosen.slots for name in names]
    frozen = [f"w.{name}" for name in forward.parameters if name not in weights]
    pulls = [*anchors.values(), *corrections.values()]
    inputs = [*weights.values(), *frozen, *slot_inputs, *counted, *pulls, *_ROWS, *hyper]
    outputs = {f"w.{name}.new": updated[name][0] for name in names}
    outputs |= {f"w.{name}.new": value for name, value in forward.statistics.items()}
    outputs |= {f"{slot}.{name}.new": updated[name][1][slot] for slot in chosen.slots for name in names}
    outputs |= {f"{name}.new": value for name, value in counted.items()}
    outputs |= {**sums, "grad_norm": norm}
    taken = set(inputs) & outputs.keys()
    if taken or len(inputs) != len(set(inputs)):
        raise ArtifactError(f"parameter names that collide: {sorted(taken)}", hint="rename the parameter")
    return finished(graph, "step", inputs, outputs)
