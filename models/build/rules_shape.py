"""Gradient rules of operators that move numbers without changing them."""

from onnx import TensorProto

from models.build.site import Gradients, Site, rule

__all__: list[str] = []


@rule("Reshape", "Squeeze", "Unsqueeze")
def _reshape(site: Site) -> Gradients:
    return (site.reshaped_like(site.dy, site.x), *(None,) * (len(site.inputs) - 1))


@rule("Transpose")
def _transpose(site: Site) -> Gradients:
    rank = len(site.shape(site.x))
    order = list(site.attribute("perm") or reversed(range(rank)))
    return (site.graph.op("Transpose", site.dy, perm=[order.index(axis) for axis in range(rank)]),)


@rule("Expand")
def _expand(site: Site) -> Gradients:
    return site.summed_to(site.dy, site.x), None


@rule("Concat")
def _concat(site: Site) -> Gradients:
    graph, axis = site.graph, int(site.attribute("axis", 0))
    gradients, start = [], 0
    for value in site.inputs:
        size = site.size(value, axis)
        ends = (graph.integers(start), graph.integers(start + size), graph.integers(axis))
        gradients.append(graph.op("Slice", site.dy, *ends))
        start += size
    return tuple(gradients)


@rule("Slice")
def _slice(site: Site) -> Gradients:
    graph, shape = site.graph, site.shape(site.x)
    starts, stops, axes, steps = (site.fixed(index) for index in (1, 2, 3, 4))
    if starts is None or stops is None or (steps is not None and (steps != 1).any()):
        raise site.refuse("it takes every n-th entry", "export it with a stride or a pool instead")
    before, after = [0] * len(shape), [0] * len(shape)
    places = range(len(starts)) if axes is None else [int(axis) % len(shape) for axis in axes]
    for axis, start, stop in zip(places, starts, stops, strict=True):
        size = shape[axis]
        if isinstance(size, int):
            kept = range(size)[int(start) : int(stop)]
            before[axis], after[axis] = kept.start, size - kept.stop
        elif start != 0 or stop < (1 << 31) - 1:
            raise site.refuse("it cuts the batch", "export the model so that it takes any number of rows")
    return graph.op("Pad", site.dy, graph.integers(*before, *after)), *(None,) * (len(site.inputs) - 1)


@rule("Pad")
def _pad(site: Site) -> Gradients:
    graph, shape, pads = site.graph, site.shape(site.x), site.fixed(1)
    if pads is None or len(pads) != 2 * len(shape) or (pads < 0).any():
        raise site.refuse("it pads by a negative amount or some axes only", "pad every axis, by 0 or more")
    if site.attribute("mode", b"constant") not in (b"constant", "constant"):
        raise site.refuse("it repeats the image at its edge", "pad with a constant")
    axes = [axis for axis in range(len(shape)) if pads[axis] or pads[len(shape) + axis]]
    rest = (None,) * (len(site.inputs) - 1)
    if not axes:
        return site.dy, *rest
    starts = [int(pads[axis]) for axis in axes]
    stops = [start + site.size(site.x, axis) for start, axis in zip(starts, axes, strict=True)]
    cut = graph.op("Slice", site.dy, *(graph.integers(*ends) for ends in (starts, stops, axes)))
    return cut, *rest


@rule("Gather")
def _gather(site: Site) -> Gradients:
    """Rows of a table (an embedding): every row collects the gradients of where it was used."""
    graph = site.graph
    if int(site.attribute("axis", 0)) % len(site.shape(site.x)):
        raise site.refuse("it gathers along another axis than the first", "transpose the table first")
    table = graph.op("Expand", graph.constant(0), graph.integers(*site.sizes(site.x)))
    rows = graph.op("Unsqueeze", site.inputs[1], graph.integers(-1))
    if graph.types.get(site.inputs[1]) != TensorProto.INT64:
        rows = graph.op("Cast", rows, to=TensorProto.INT64)
    return graph.op("ScatterND", table, rows, site.dy, reduction="add"), None
