"""Reverse-mode differentiation over a working graph: one walk backwards, one rule per node.

Griewank, Walther: Evaluating Derivatives (2008), chapter 3.
"""

from collections.abc import Mapping, Sequence

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph, described
from models.build.rules import RULES
from models.build.site import Site

__all__ = ["backward"]


def backward(graph: WorkingGraph, seeds: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """Add the nodes that compute gradients.

    ``seeds`` maps a value to the gradient that flows into it (for a loss: itself to a constant 1);
    ``wanted`` are inputs of the graph. Returns the gradient of each, of the input's own shape.

    Raises:
        ArtifactError: an operator on the way has no rule, or no gradient reaches one of ``wanted``.
    """
    gradients = dict(seeds)
    on_the_way = set(wanted)
    forward = list(graph.nodes)
    for node in forward:
        if on_the_way.intersection(node.input):
            on_the_way.update(name for name in node.output if graph.is_float(name))
    for node in reversed(forward):
        dy = gradients.get(node.output[0])
        if dy is None or node.output[0] not in on_the_way:
            continue
        rule = RULES.get(node.op_type)
        if rule is None:
            raise ArtifactError(
                f"{described(node)}: the operator has no gradient rule",
                hint=f"there are {', '.join(sorted(RULES))}",
            )
        for name, gradient in zip(node.input, rule(Site(graph=graph, node=node, dy=dy)), strict=True):
            if gradient is None or name not in on_the_way:
                continue
            known = gradients.get(name)
            gradients[name] = gradient if known is None else graph.op("Add", known, gradient)
            # A gradient has the shape of its value; inference loses the batch in a Reshape or a Resize.
            shape = graph.known_shape(name)
            if shape is not None and gradients[name] not in graph.constants:
                graph.know(gradients[name], shape, like=name)
    missing = [name for name in wanted if name not in gradients]
    if missing:
        raise ArtifactError(
            f"no gradient reaches {', '.join(name.removeprefix('w.') for name in missing)}",
            hint="the loss does not change with them: leave them out of what is trained (--train PATTERN "
            "names the others), or out of the model",
        )
    return {name: gradients[name] for name in wanted}
