"""Gradient rules of reductions."""

import numpy as np

from models.build.site import Gradients, Site, rule

__all__: list[str] = []


@rule("ReduceSum")
def _reduce_sum(site: Site) -> Gradients:
    return (_spread(site, site.dy), *(None,) * (len(site.inputs) - 1))


@rule("ReduceMean")
def _reduce_mean(site: Site) -> Gradients:
    graph = site.graph
    counted = [site.shape(site.x)[axis] for axis in _reduced(site)]
    if all(isinstance(dim, int) for dim in counted):
        count = graph.constant(np.prod([dim for dim in counted if isinstance(dim, int)], dtype=np.int64))
    else:
        whole, left = (
            graph.op("Cast", graph.op("Size", value), to=graph.float_element) for value in (site.x, site.y)
        )
        count = graph.op("Div", whole, left)
    return (_spread(site, graph.op("Div", site.dy, count)), *(None,) * (len(site.inputs) - 1))


@rule("ReduceMax")
def _reduce_max(site: Site) -> Gradients:
    """The maxima that tie share the gradient."""
    graph, axes = site.graph, _reduced(site)
    y, dy = site.y, site.dy
    if axes and not site.attribute("keepdims", 1):
        y, dy = (graph.op("Unsqueeze", value, graph.integers(*axes)) for value in (y, dy))
    mask = graph.op("Cast", graph.op("Equal", site.x, y), to=graph.float_element)
    ties = graph.op("ReduceSum", mask, graph.integers(*axes), keepdims=1) if axes else mask
    return graph.op("Mul", mask, graph.op("Div", dy, ties)), *(None,) * (len(site.inputs) - 1)


def _reduced(site: Site) -> list[int]:
    """The axes that a reduction goes over."""
    rank = len(site.shape(site.x))
    if len(site.inputs) < 2 or not site.inputs[1]:
        return [] if site.attribute("noop_with_empty_axes", 0) else list(range(rank))
    axes = site.graph.constants.get(site.inputs[1])
    if axes is None:
        raise site.refuse("its axes are computed", "export the model with constant axes")
    return sorted(int(axis) % rank for axis in axes) if axes.size else list(range(rank))


def _spread(site: Site, gradient: str) -> str:
    """Repeat a reduction's gradient over the axes that were reduced."""
    axes = _reduced(site)
    if not axes:
        return gradient
    if not site.attribute("keepdims", 1):
        gradient = site.graph.op("Unsqueeze", gradient, site.graph.integers(*axes))
    shape = site.shape(site.x)
    target = (
        site.graph.integers(*(dim for dim in shape if isinstance(dim, int)))
        if all(isinstance(dim, int) for dim in shape)
        else site.graph.op("Shape", site.x)
    )
    return site.graph.op("Expand", gradient, target)
