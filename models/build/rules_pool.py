"""Gradient rules of pools and of up-sampling.

A maximum's gradient goes to where the maximum was; positions that tie share it. No index output is used:
MaxPool with indices is many times slower than without in ONNX Runtime and absent in TFLite.
"""

import math
from collections.abc import Sequence

import numpy as np

from models.build.site import Gradients, Site, rule
from models.build.window import Window

__all__: list[str] = []

_BELOW_ALL = -1e30


@rule("MaxPool")
def _max_pool(site: Site) -> Gradients:
    graph, window = site.graph, _window(site)
    if _tiles(site, window):
        largest = graph.op("Equal", site.x, _magnified(site, site.y, window.kernel))
        mask = graph.op("Cast", largest, to=graph.float_element)
        share = graph.op("AveragePool", mask, kernel_shape=window.kernel, strides=window.kernel)
        ties = graph.op("Mul", share, graph.constant(math.prod(window.kernel)))
        return (graph.op("Mul", mask, _magnified(site, graph.op("Div", site.dy, ties), window.kernel)),)
    taps = math.prod(window.kernel)
    one_hot = graph.constant(np.eye(taps).reshape(taps, 1, *window.kernel))
    image = _one_channel(site, site.x)
    if window.padded:
        edges = graph.integers(0, 0, *window.before, 0, 0, *window.after)
        image = graph.op("Pad", image, edges, graph.constant(_BELOW_ALL), mode="constant")
    seen = graph.op(
        "Conv",
        image,
        one_hot,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
    )
    y, dy = (_one_channel(site, value, like=site.y) for value in (site.y, site.dy))
    mask = graph.op("Cast", graph.op("Equal", seen, y), to=graph.float_element)
    ties = graph.op("ReduceSum", mask, graph.integers(1), keepdims=1)
    return (_spread_back(site, window, graph.op("Mul", mask, graph.op("Div", dy, ties)), one_hot),)


@rule("AveragePool")
def _average_pool(site: Site) -> Gradients:
    graph, window = site.graph, _window(site)
    if window.padded and not site.attribute("count_include_pad", 0):
        raise site.refuse("its average leaves the padding out", "pad in front of the pool")
    share = 1 / math.prod(window.kernel)
    if _tiles(site, window):
        return (_magnified(site, graph.op("Mul", site.dy, graph.constant(share)), window.kernel),)
    kernel = graph.constant(np.full((1, 1, *window.kernel), share))
    return (_spread_back(site, window, _one_channel(site, site.dy, like=site.y), kernel),)


@rule("Resize")
def _resize(site: Site) -> Gradients:
    """Nearest neighbour by whole factors, which a lowering has made sure of."""
    scales = site.fixed(2)
    factors = [round(float(scale)) for scale in scales] if scales is not None else []
    if factors[:2] != [1, 1]:
        raise site.refuse("it resizes by sizes", "export the up-sampling with whole scale factors")
    kernel = factors[2:]
    mean = site.graph.op("AveragePool", site.dy, kernel_shape=kernel, strides=kernel)
    whole = site.graph.op("Mul", mean, site.graph.constant(math.prod(kernel)))
    return whole, *(None,) * (len(site.inputs) - 1)


def _window(site: Site) -> Window:
    window = Window.of(site.node, tuple(site.attribute("kernel_shape")))
    if site.attribute("ceil_mode", 0):
        raise site.refuse("its last window may hang over", "export the pool with ceil_mode 0")
    return window


def _tiles(site: Site, window: Window) -> bool:
    """Whether the windows lie side by side and leave nothing out."""
    sizes = [size * step for size, step in zip(site.sizes(site.y, 2), window.kernel, strict=True)]
    plain = not window.padded and set(window.dilations) == {1}
    return plain and window.kernel == window.strides and sizes == site.sizes(site.x, 2)


def _magnified(site: Site, value: str, factors: Sequence[int]) -> str:
    """Every position repeated, which gives the shape of the pool's input."""
    scales = site.graph.constant([1, 1, *factors], np.float32)
    wide = site.graph.op(
        "Resize",
        value,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    # Inference forgets the batch here, although its factor is 1.
    site.graph.know(wide, site.shape(site.x), like=site.x)
    return wide


def _one_channel(site: Site, value: str, *, like: str | None = None) -> str:
    """The channels folded into the batch."""
    sizes = site.sizes(like or value, 2)
    return site.graph.op("Reshape", value, site.graph.integers(-1, 1, *sizes))


def _spread_back(site: Site, window: Window, value: str, kernel: str) -> str:
    """Give every tap of every window back to where it came from, padding cut off."""
    sizes, spanned = site.sizes(site.x, 2), window.spanned(site.sizes(site.y, 2))
    spread = site.graph.op(
        "ConvTranspose",
        value,
        kernel,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output_padding=[
            size + before + after - span
            for size, before, after, span in zip(sizes, window.before, window.after, spanned, strict=True)
        ],
    )
    return site.reshaped_like(spread, site.x)
