"""Operators that move numbers without changing them, in plain NumPy."""

from collections.abc import Sequence

import numpy as np

from models.runtime.numpy_kernel import Array, Attributes, kernel, whole_numbers

__all__: list[str] = []


@kernel("Reshape")
def _reshape(attributes: Attributes, x: Array, shape: Array) -> Array:
    dims = [int(dim) for dim in shape]
    if not attributes.get("allowzero"):
        dims = [x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(dims)]
    return x.reshape(dims)


@kernel("Squeeze")
def _squeeze(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x) if axes is None else np.squeeze(x, tuple(int(axis) for axis in axes))


@kernel("Unsqueeze")
def _unsqueeze(attributes: Attributes, x: Array, axes: Array) -> Array:
    places = whole_numbers(axes) or []
    if len(places) != 1:
        return np.expand_dims(x, tuple(places))
    at = places[0] if places[0] >= 0 else places[0] + x.ndim + 1
    if not 0 <= at <= x.ndim:
        raise ValueError(f"a new axis {places[0]} for {x.ndim} dimensions")
    return x.reshape(*x.shape[:at], 1, *x.shape[at:])  # expand_dims takes four times as long


@kernel("Transpose")
def _transpose(attributes: Attributes, x: Array) -> Array:
    return np.transpose(x, attributes.get("perm"))


@kernel("Expand")
def _expand(attributes: Attributes, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(dim) for dim in shape)))


@kernel("Shape")
def _shape(attributes: Attributes, x: Array) -> Array:
    return np.array(x.shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


@kernel("Size")
def _size(attributes: Attributes, x: Array) -> Array:
    return np.array(x.size, np.int64)


@kernel("Concat")
def _concat(attributes: Attributes, *parts: Array) -> Array:
    return np.concatenate(parts, attributes["axis"])


@kernel("Slice")
def _slice(attributes: Attributes, x: Array, starts: Array, stops: Array, *rest: Array | None) -> Array:
    axes, steps = (*rest, None, None)[:2]
    places = whole_numbers(axes) or list(range(len(starts)))
    strides = whole_numbers(steps) or [1] * len(places)
    cuts: list[slice] = [slice(None)] * x.ndim
    for axis, start, stop, step in zip(places, starts, stops, strides, strict=True):
        cuts[axis] = _cut(x.shape[axis], int(start), int(stop), step)
    return x[tuple(cuts)]


def _cut(size: int, start: int, stop: int, step: int) -> slice:
    # A stop far below zero means "to the very beginning", which a slice of Python spells None.
    return slice(start, None if step < 0 and stop < -size else stop, step)


@kernel("Pad")
def _pad(
    attributes: Attributes, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None
) -> Array:
    if attributes.get("mode", b"constant") != b"constant":
        raise ValueError(f"Pad of mode {attributes['mode']!r}")
    places: Sequence[int] = whole_numbers(axes) or range(x.ndim)
    ends = [(0, 0)] * x.ndim
    for axis, before, after in zip(places, pads[: len(places)], pads[len(places) :], strict=True):
        ends[axis] = (int(before), int(after))
    return np.pad(x, ends, constant_values=0 if value is None else value.reshape(()))


@kernel("Gather")
def _gather(attributes: Attributes, x: Array, indices: Array) -> Array:
    return np.asarray(np.take(x, indices, attributes.get("axis", 0)))


@kernel("ScatterND")
def _scatter(attributes: Attributes, table: Array, indices: Array, updates: Array) -> Array:
    if attributes.get("reduction") != b"add" or indices.shape[-1] != 1:
        raise ValueError("ScatterND other than adding rows")
    result = np.array(table)
    np.add.at(result, indices[..., 0], updates)
    return result


@kernel("ConstantOfShape")
def _constant_of_shape(attributes: Attributes, shape: Array) -> Array:
    value = np.asarray(attributes.get("value", np.zeros(1, np.float32)))
    return np.full(tuple(int(dim) for dim in shape), value.reshape(()), value.dtype)


@kernel("Range")
def _range(attributes: Attributes, start: Array, limit: Array, delta: Array) -> Array:
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
