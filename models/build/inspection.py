"""What a builder makes of a forward model, before anything is built: parameters, operators, obstacles."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fl_protocol.errors import ArtifactError
from models.build.assemble import assemble
from models.build.exporter import check_nothing_lost
from models.build.lift import Forward, lift, load_model
from models.build.lower import LOWERINGS
from models.build.mode import MODES
from models.build.obstacles import unsupported
from models.build.rules import RULES
from models.runtime.numpy_ops import KERNELS

__all__ = ["Inspection", "Obstacle", "OperatorUse", "inspect_model"]

DIFFERENTIATED, LOWERED, FORWARD_ONLY, UNSUPPORTED = "rule", "lowered", "forward only", "unsupported"
"""What becomes of an operator; ``forward only`` carries no gradient, which shapes and ids do not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorUse:
    """An operator of the model: how often it occurs, and what becomes of it."""

    op: str
    count: int
    support: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why the model cannot be trained as it is, and what to do."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """``parameters`` are name, shape and role in wire order, empty where the model cannot be taken apart.

    Without ``obstacles`` the model can be built, by what can be told without building it.
    """

    opset: int
    operators: tuple[OperatorUse, ...]
    parameters: tuple[tuple[str, tuple[int, ...], str], ...]
    output: tuple[int | str | None, ...]
    obstacles: tuple[Obstacle, ...]


def inspect_model(
    model: onnx.ModelProto | Path | str,
    *,
    parameters: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    personal: Sequence[str] | None = None,
    batch_norm: str | None = None,
) -> Inspection:
    """Take a model apart as ``build_artifact`` would, which see for the choices.

    Raises:
        ArtifactError: it is no valid model at all.
    """
    source = load_model(model)
    local = {function.name for function in source.functions}
    counts = Counter(node.op_type for node in source.graph.node if node.op_type not in local)
    counts.update(node.op_type for function in source.functions for node in function.node)
    operators = tuple(
        OperatorUse(op=op, count=count, support=_support(op)) for op, count in sorted(counts.items())
    )
    refusals = [
        unsupported(node)
        for node in source.graph.node
        if node.op_type not in local and _support(node.op_type) == UNSUPPORTED
    ]
    obstacles = [Obstacle(reason=str(error.args[0]), hint=error.hint) for error in refusals]
    forward: Forward | None = None
    try:
        forward = lift(source, patterns=parameters, train=train, personal=personal, batch_norm=batch_norm)
        if parameters is None:
            check_nothing_lost(source, forward.parameters)
        classes = forward.graph.shape(forward.output)[1:]
        several = len(classes) == 1 and classes != (1,)
        assemble(forward, loss="softmax_cross_entropy" if several else "mse", optimizer="sgd", metrics=())
    except ArtifactError as error:
        if not obstacles:
            obstacles.append(Obstacle(reason=str(error.args[0]), hint=error.hint))
    return Inspection(
        opset=max((entry.version for entry in source.opset_import if not entry.domain), default=0),
        operators=operators,
        parameters=() if forward is None else _listed(forward),
        output=() if forward is None else forward.graph.shape(forward.output),
        obstacles=tuple(obstacles),
    )


def _support(op: str) -> str:
    if op in RULES:
        return DIFFERENTIATED
    if op in LOWERINGS or op in MODES:
        return LOWERED
    return FORWARD_ONLY if op in KERNELS else UNSUPPORTED


def _listed(forward: Forward) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    def role(name: str) -> str:
        return f"{forward.roles[name]} buffer" if name in forward.buffers else forward.roles[name]

    return tuple((name, array.shape, role(name)) for name, array in forward.parameters.items())
