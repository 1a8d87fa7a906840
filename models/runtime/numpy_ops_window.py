"""Convolutions, pools and up-sampling in plain NumPy: one matrix product, or one pass per tap of a window."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from models.runtime.numpy_kernel import Array, Attributes, kernel

__all__: list[str] = []


@kernel("Conv")
def _conv(attributes: Attributes, x: Array, w: Array, bias: Array | None = None) -> Array:
    strides, dilations, pads = _window(attributes, w.ndim - 2)
    group = attributes.get("group", 1)
    patches = _patches(_padded(x, pads, 0), w.shape[2:], strides, dilations)
    rank, rows, sizes = w.ndim - 2, len(x), patches.shape[2 : w.ndim]
    # [group, batch x positions, channels x taps] times [group, channels x taps, outputs]: few, large products
    split = patches.reshape(rows, group, w.shape[1], *patches.shape[2:])
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    columns = split.transpose(order).reshape(group, rows * math.prod(sizes), math.prod(w.shape[1:]))
    kernels = w.reshape(group, w.shape[0] // group, -1).swapaxes(1, 2)
    # Of many groups each product is small, and a BLAS would wake its threads for every one of them.
    product = np.matmul(columns, kernels) if group == 1 else np.einsum("gpk,gko->gpo", columns, kernels)
    product = product.reshape(group, rows, *sizes, w.shape[0] // group)
    product = np.moveaxis(product, (0, -1), (1, 2)).reshape(rows, w.shape[0], *sizes)
    return np.asarray(product if bias is None else product + _per_channel(bias, rank))


@kernel("ConvTranspose")
def _conv_transpose(attributes: Attributes, x: Array, w: Array, bias: Array | None = None) -> Array:
    rank = w.ndim - 2
    if "output_shape" in attributes:
        raise ValueError("ConvTranspose with an output_shape")
    strides, dilations, pads = _window(attributes, rank)
    extra = attributes.get("output_padding") or [0] * rank
    group, taps = attributes.get("group", 1), w.shape[2:]
    rows, sizes = len(x), x.shape[2:]
    # [group, outputs x taps, channels] times [batch, group, channels, positions]
    kernels = w.reshape(group, w.shape[0] // group, -1).swapaxes(1, 2)
    product = np.matmul(kernels, x.reshape(rows, group, w.shape[0] // group, math.prod(sizes)))
    spread = product.reshape(rows, group * w.shape[1], *taps, *sizes)
    reach = [step * (count - 1) for step, count in zip(dilations, taps, strict=True)]
    full = [
        max((size - 1) * stride + far + 1 + more, before + after)
        for size, stride, far, more, before, after in zip(
            sizes, strides, reach, extra, pads[:rank], pads[rank:], strict=True
        )
    ]
    result = np.zeros((rows, group * w.shape[1], *full), x.dtype)
    for tap in itertools.product(*map(range, taps)):
        result[_taps(tap, sizes, strides, dilations)] += spread[(slice(None), slice(None), *tap)]
    inside = tuple(
        slice(before, size - after)
        for before, size, after in zip(pads[:rank], full, pads[rank:], strict=True)
    )
    result = result[(slice(None), slice(None), *inside)]
    return result if bias is None else result + _per_channel(bias, rank)


@kernel("MaxPool")
def _max_pool(attributes: Attributes, x: Array) -> Array:
    taps = _pool(attributes)
    strides, dilations, pads = _window(attributes, len(taps))
    patches = _patches(_padded(x, pads, -np.inf), taps, strides, dilations)
    return np.asarray(patches.max(axis=tuple(range(-len(taps), 0))))


@kernel("AveragePool")
def _average_pool(attributes: Attributes, x: Array) -> Array:
    taps = _pool(attributes)
    strides, dilations, pads = _window(attributes, len(taps))
    over = tuple(range(-len(taps), 0))
    sums = _patches(_padded(x, pads, 0), taps, strides, dilations).sum(axis=over)
    if not any(pads) or attributes.get("count_include_pad"):
        return np.asarray(sums / x.dtype.type(math.prod(taps)))
    inside = _padded(np.ones((1, 1, *x.shape[2:]), x.dtype), pads, 0)
    return np.asarray(sums / _patches(inside, taps, strides, dilations).sum(axis=over))


@kernel("Resize")
def _resize(
    attributes: Attributes,
    x: Array,
    region: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
) -> Array:
    factors = [] if scales is None else [round(float(scale)) for scale in scales]
    way = [attributes.get(key) for key in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    exact = scales is not None and factors == [float(scale) for scale in scales] and min(factors) >= 1
    if not exact or way != [b"nearest", b"asymmetric", b"floor"]:
        raise ValueError("Resize other than to the nearest neighbour by whole factors")
    for axis, factor in enumerate(factors):
        if factor > 1:
            x = np.repeat(x, factor, axis)
    return x


def _window(attributes: Attributes, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
        raise ValueError("auto_pad")
    ones = [1] * rank
    return (
        list(attributes.get("strides") or ones),
        list(attributes.get("dilations") or ones),
        list(attributes.get("pads") or [0] * (2 * rank)),
    )


def _pool(attributes: Attributes) -> list[int]:
    if attributes.get("ceil_mode"):
        raise ValueError("a pool with ceil_mode")
    return list(attributes["kernel_shape"])


def _padded(x: Array, pads: Sequence[int], value: float) -> Array:
    rank = len(pads) // 2
    if not any(pads):
        return x
    ends = list(zip(pads[:rank], pads[rank:], strict=True))
    return np.pad(x, [(0, 0), (0, 0), *ends], constant_values=value)


def _patches(x: Array, taps: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """A view [batch, channels, positions..., taps...]; nothing is copied."""
    rank = len(taps)
    extents = [step * (count - 1) + 1 for step, count in zip(dilations, taps, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, extents, axis=tuple(range(2, 2 + rank)))
    every = [slice(None, None, step) for step in (*strides, *dilations)]
    return view[(slice(None), slice(None), *every)]


def _taps(
    tap: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    """Where one tap of all windows lies in the image."""
    places = (
        slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
        for at, size, stride, dilation in zip(tap, sizes, strides, dilations, strict=True)
    )
    return (slice(None), slice(None), *places)


def _per_channel(bias: Array, rank: int) -> Array:
    return bias.reshape(-1, *[1] * rank)
