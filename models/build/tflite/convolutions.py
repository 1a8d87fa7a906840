"""Convolutions and pooling: channels last, as TFLite has them; one dimension runs as height times 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fl_protocol.errors import ArtifactError
from models.build.tflite.attributes import integer, integers, number, word
from models.build.tflite.elementwise import scalar
from models.build.tflite.replay import TRANSLATIONS, Laid, Layout, Replay, Translation, Value, translation
from models.build.tflite.schema import PADDING_SAME, PADDING_VALID
from models.build.tflite.shapes import fixed, padded
from models.build.tflite.windows import Window, gathered, is_worth_gathering, two_sizes, window_of
from models.runtime.onnx_reader import Node

__all__: list[str] = []

# Below every activation, and finite, so that a window of padding alone makes no NaN downstream.
_LOWEST = float(np.float32(-1e30))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """A window that goes over an image: TFLite's padding, and the result [rows, height, width, channels]."""

    window: Window
    padding: int
    shape: tuple[int, int, int, int]

    @property
    def options(self) -> dict[str, int]:
        """What TFLite's convolutions want to know."""
        return {
            "padding": self.padding,
            "stride_h": self.window.stride[0],
            "stride_w": self.window.stride[1],
            "dilation_h": self.window.dilation[0],
            "dilation_w": self.window.dilation[1],
        }


@translation("Conv")
def _conv(replay: Replay, node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    window, groups = window_of(node, w.shape[2:]), integer(node, "group", 1)
    sizes, channels_in = _image_sizes(x), x.shape[1]
    if w.shape[1] * groups != channels_in:
        raise ArtifactError(f"{groups} groups of {w.shape[1]} channels for {channels_in}")
    product = _as_product(replay, x, w, window) if groups == 1 and replay.fast else None
    if product is not None:
        return product if bias is None else _with_bias(replay, product, bias)
    image, padding = _with_margins(replay, _channels_last(replay, x), sizes, window)
    shape = (x.shape[0], *window.outputs(sizes), w.shape[0])
    sweep = _Sweep(window=window, padding=padding, shape=shape)
    added = replay.graph.constant(np.zeros(w.shape[0], np.float32)) if bias is None else replay.tensor(bias)
    if groups == 1:
        result = _conv_2d(replay, sweep, image, _filters(replay, w, (0, 2, 3, 1)), added)
    elif groups == channels_in:
        result = _depthwise(replay, sweep, image, _filters(replay, w, (1, 2, 3, 0)), added)
    else:
        result = _grouped(replay, sweep, image, _filters(replay, w, (0, 2, 3, 1)), groups)
        if bias is not None:
            result = replay.call("ADD", [result, added], shape)
    return _image(replay, result, len(x.shape))


@translation("ConvTranspose")
def _conv_transpose(replay: Replay, node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    window, groups = window_of(node, w.shape[2:]), integer(node, "group", 1)
    if any(d > 1 and k > 1 for d, k in zip(window.dilation, window.kernel, strict=True)):
        w, window = _with_holes(replay, w, window)
    rank = len(x.shape)
    extra = two_sizes(integers(node, "output_padding", [0] * (rank - 2)), 0)
    sizes = _image_sizes(x)
    height, width = ((sizes[i] - 1) * window.stride[i] + window.kernel[i] + extra[i] for i in (0, 1))
    full = (x.shape[0], height, width, w.shape[1] * groups)
    image = _channels_last(replay, x)
    if w.shape[1] == 1 and groups > 1:
        result = _depthwise_transpose(replay, image, w, stride=window.stride, full=full)
    else:
        filters = _filters(replay, w, (1, 2, 3, 0))
        result = _grouped_transpose(replay, image, filters, groups, stride=window.stride, full=full)
    if any(window.before) or any(window.after):
        left = [height - window.before[0] - window.after[0], width - window.before[1] - window.after[1]]
        result = replay.cut(result, (0, *window.before, 0), (full[0], *left, full[3]))
    if bias is not None:
        result = replay.call("ADD", [result, replay.tensor(bias)], replay.graph.shape(result))
    return _image(replay, result, rank)


def _pooling(op: str, fill: float) -> Translation:
    def pool(replay: Replay, node: Node, x: Value) -> Value:
        if len(node.outputs) != 1 or integer(node, "ceil_mode", 0):
            raise ArtifactError("pooling with indices, or with rounding up")
        window = window_of(node, integers(node, "kernel_shape", []))
        if window.dilation != (1, 1):
            raise ArtifactError("pooling with dilation")
        margins = any(window.before) or any(window.after)
        if margins and op == "AVERAGE_POOL_2D" and not integer(node, "count_include_pad", 0):
            raise ArtifactError("an average that leaves its padding out", hint="count_include_pad=1")
        height, width = window.outputs(_image_sizes(x))
        image = _channels_last(replay, x)
        if margins:
            sides = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
            image = padded(replay, image, sides, fill)
        pooled = replay.call(
            op,
            [image],
            (x.shape[0], height, width, x.shape[1]),
            padding=PADDING_VALID,
            stride_h=window.stride[0],
            stride_w=window.stride[1],
            filter_h=window.kernel[0],
            filter_w=window.kernel[1],
        )
        return _image(replay, pooled, len(x.shape))

    return pool


TRANSLATIONS["AveragePool"] = _pooling("AVERAGE_POOL_2D", 0.0)
TRANSLATIONS["MaxPool"] = _pooling("MAX_POOL_2D", _LOWEST)


@translation("Resize")
def _resize(replay: Replay, node: Node, x: Value, *given: Value | None) -> Value:
    """Repetition of pixels, a whole number of times: what the gradient of max pooling is made of."""
    _, scales, sizes = (*given, None, None)[:3]
    if word(node, "mode", "nearest") != "nearest":
        raise ArtifactError("resizing by interpolation", hint="use mode nearest")
    if isinstance(sizes, np.ndarray):
        wanted = fixed(sizes, "sizes")
    elif isinstance(scales, np.ndarray) and np.array_equal(scales, np.round(scales)):
        wanted = [dim * int(scale) for dim, scale in zip(x.shape, scales, strict=True)]
    else:
        raise ArtifactError("resizing by something else than whole numbers")
    if tuple(wanted[:2]) != tuple(x.shape[:2]) or any(b % a for a, b in zip(x.shape, wanted, strict=True)):
        raise ArtifactError(f"resizing {list(x.shape)} to {wanted}")
    tensor, (height, width) = _channels_last(replay, x), _image_sizes(x)
    down, across = (new // old for new, old in zip(two_sizes(wanted[2:], 1), (height, width), strict=True))
    # Joined with itself: RESIZE_NEAREST_NEIGHBOR takes four times as long.
    rows, channels = x.shape[:2]
    wide = _repeated(replay, tensor, across, (rows, height, width, across * channels))
    line = replay.reshape(wide, (rows, height, 1, width * across * channels))
    tall = _repeated(replay, line, down, (rows, height, 1, down * width * across * channels))
    stored = (rows, height * down, width * across, channels)
    return _image(replay, replay.reshape(tall, stored), len(x.shape))


def _repeated(replay: Replay, tensor: int, times: int, shape: Sequence[int]) -> int:
    """A tensor joined with itself along its last axis."""
    return tensor if times == 1 else replay.call("CONCATENATION", [tensor] * times, shape, axis=3)


@translation("BatchNormalization")
def _batch_normalization(replay: Replay, node: Node, x: Value, *statistics: Value) -> Value:
    """With given statistics, as in evaluation."""
    if integer(node, "training_mode", 0):
        raise ArtifactError("batch normalisation in training mode")
    epsilon = scalar(number(node, "epsilon", 1e-5))
    wide = [1, x.shape[1], *(1 for _ in x.shape[2:])]
    gain, shift, middle, spread = (
        replay.new(replay.reshape(replay.tensor(value), wide)) for value in statistics
    )
    deviation = replay.elementwise("SQRT", replay.elementwise("ADD", spread, epsilon))
    normal = replay.elementwise("DIV", replay.elementwise("SUB", x, middle), deviation)
    return replay.elementwise("ADD", replay.elementwise("MUL", normal, gain), shift)


def _image_sizes(x: Value) -> tuple[int, int]:
    return two_sizes(x.shape[2:], 1)


def _last(rank: int) -> Layout:
    return (0, *range(2, rank), 1)


def _channels_last(replay: Replay, x: Value) -> int:
    """The tensor of an image as [rows, height, width, channels]."""
    height, width = _image_sizes(x)
    tensor = replay.tensor(x, _last(len(x.shape)))
    return replay.reshape(tensor, (x.shape[0], height, width, x.shape[1]))


def _image(replay: Replay, tensor: int, rank: int) -> Laid:
    """The value of a tensor [rows, height, width, channels]."""
    rows, height, width, channels = replay.graph.shape(tensor)
    sizes = (height, width)[: rank - 2]
    stored = replay.reshape(tensor, (rows, *sizes, channels))
    return Laid((rows, channels, *sizes), {_last(rank): stored})


def _filters(replay: Replay, w: Value, layout: tuple[int, int, int, int]) -> int:
    """The filters' tensor in a layout of four axes, 2 and 3 being height and width."""
    rank = len(w.shape)
    tensor = replay.tensor(w, tuple(axis for axis in layout if axis < rank))
    sizes = (*w.shape, 1)
    return replay.reshape(tensor, [sizes[axis] for axis in layout])


def _with_margins(replay: Replay, image: int, sizes: Sequence[int], window: Window) -> tuple[int, int]:
    """The image with its margins, and TFLite's word for the rest."""
    if not any(window.before) and not any(window.after):
        return image, PADDING_VALID
    if window.is_same(sizes):
        return image, PADDING_SAME
    margins = zip(window.before, window.after, strict=True)
    return padded(replay, image, [(0, 0), *margins, (0, 0)]), PADDING_VALID


def _as_product(replay: Replay, x: Value, w: Value, window: Window) -> Laid | None:
    """A convolution with filters that are computed as a product; ``None`` where it had better be none.

    The gradient of filters is a convolution whose "filters" are large and whose result is small. It is the
    same product with the roles of taps and places swapped, over the very tensor that the forward pass has
    gathered.
    """
    if isinstance(w, np.ndarray):
        return None  # CONV_2D is fast where the filters are fixed
    places = window.outputs(_image_sizes(x))
    if math.prod(window.kernel) <= math.prod(places):
        image = _channels_last(replay, x)
        if not is_worth_gathering(replay, image, window, places):
            return None
        seen = gathered(replay, image, window, places)
        filters = replay.reshape(_filters(replay, w, (2, 3, 1, 0)), (replay.graph.shape(seen)[1], w.shape[0]))
        product = _matrix_product(replay, seen, filters)
        return _image(replay, replay.reshape(product, (x.shape[0], *places, w.shape[0])), len(x.shape))
    swapped = replace(window, kernel=places, stride=window.dilation, dilation=window.stride)
    image = _filters(replay, x, (1, 2, 3, 0))
    if not is_worth_gathering(replay, image, swapped, window.kernel):
        return None
    seen = gathered(replay, image, swapped, window.kernel)
    errors = replay.reshape(_filters(replay, w, (1, 2, 3, 0)), (replay.graph.shape(seen)[0], w.shape[0]))
    product = _matrix_product(replay, errors, seen, flip_a=True)
    rank = len(x.shape) - 2
    stored = replay.reshape(product, (w.shape[0], *places[:rank], x.shape[0]))
    return Laid((x.shape[0], w.shape[0], *places[:rank]), {(1, *range(2, 2 + rank), 0): stored})


def _matrix_product(replay: Replay, a: int, b: int, *, flip_a: bool = False) -> int:
    rows, columns = replay.graph.shape(a)[1 if flip_a else 0], replay.graph.shape(b)[1]
    return replay.call("BATCH_MATMUL", [a, b], (rows, columns), adj_x=flip_a, adj_y=False)


def _with_bias(replay: Replay, image: Laid, bias: Value) -> Laid:
    wide = replay.new(replay.reshape(replay.tensor(bias), (1, *bias.shape, *[1] * (len(image.shape) - 2))))
    return replay.elementwise("ADD", image, wide)


def _conv_2d(replay: Replay, sweep: _Sweep, image: int, filters: int, bias: int) -> int:
    return replay.call("CONV_2D", [image, filters, bias], sweep.shape, **sweep.options)


def _depthwise(replay: Replay, sweep: _Sweep, image: int, filters: int, bias: int) -> int:
    _, height, width, channels = replay.graph.shape(image)
    stride = sweep.window.stride
    if stride[0] != stride[1] and 1 not in (height, width):
        raise ArtifactError(f"a depthwise convolution of strides {stride}", hint="use equal strides")
    return replay.call(
        "DEPTHWISE_CONV_2D",
        [image, filters, bias],
        sweep.shape,
        version=1 if sweep.window.dilation == (1, 1) else 2,
        depth_multiplier=sweep.shape[3] // channels,
        **sweep.options,
    )


def _grouped(replay: Replay, sweep: _Sweep, image: int, filters: int, groups: int) -> int:
    """One convolution a group, without a bias: few runtimes have a grouped CONV_2D."""
    *sizes, channels = replay.graph.shape(image)
    count, *window_sizes = replay.graph.shape(filters)
    each_in, each_out = channels // groups, count // groups
    nothing = replay.graph.constant(np.zeros(each_out, np.float32))
    part = replace(sweep, shape=(*sweep.shape[:3], each_out))
    pieces = [
        _conv_2d(
            replay,
            part,
            replay.cut(image, (0, 0, 0, group * each_in), (*sizes, each_in)),
            replay.cut(filters, (group * each_out, 0, 0, 0), (each_out, *window_sizes)),
            nothing,
        )
        for group in range(groups)
    ]
    return replay.call("CONCATENATION", pieces, sweep.shape, axis=3)


def _with_holes(replay: Replay, w: Value, window: Window) -> tuple[Laid, Window]:
    """Filters with zeros between their taps, and their window, which has no dilation: TRANSPOSE_CONV knows
    of none."""
    pairs, (tall, broad), (down, across) = math.prod(w.shape[:2]), window.kernel, window.dilation
    taps = replay.reshape(replay.tensor(w), (pairs * tall, broad, 1))
    taps = padded(replay, taps, [(0, 0), (0, 0), (0, across - 1)])
    taps = replay.reshape(taps, (pairs * tall, broad * across))
    broad = (broad - 1) * across + 1
    taps = replay.cut(taps, (0, 0), (pairs * tall, broad))
    taps = replay.reshape(taps, (pairs, tall, 1, broad))
    taps = padded(replay, taps, [(0, 0), (0, 0), (0, down - 1), (0, 0)])
    taps = replay.reshape(taps, (pairs, tall * down, broad))
    tall = (tall - 1) * down + 1
    taps = replay.cut(taps, (0, 0, 0), (pairs, tall, broad))
    spread = replay.reshape(taps, (*w.shape[:2], *(tall, broad)[: len(w.shape) - 2]))
    return replay.new(spread), replace(window, kernel=(tall, broad), dilation=(1, 1))


def _grouped_transpose(
    replay: Replay, image: int, filters: int, groups: int, *, stride: tuple[int, int], full: Sequence[int]
) -> int:
    """One transposed convolution a group; filters [channels out of a group, height, width, channels in]."""
    *sizes, channels = replay.graph.shape(image)
    *window_sizes, count = replay.graph.shape(filters)
    each_in, shape = channels // groups, (*full[:3], full[3] // groups)
    pieces = [
        replay.call(
            "TRANSPOSE_CONV",
            [
                replay.graph.integers(*shape),
                replay.cut(filters, (0, 0, 0, group * each_in), (*window_sizes, count // groups)),
                replay.cut(image, (0, 0, 0, group * each_in), (*sizes, each_in)),
            ],
            shape,
            padding=PADDING_VALID,
            stride_h=stride[0],
            stride_w=stride[1],
        )
        for group in range(groups)
    ]
    return pieces[0] if groups == 1 else replay.call("CONCATENATION", pieces, full, axis=3)


def _depthwise_transpose(
    replay: Replay, image: int, w: Value, *, stride: tuple[int, int], full: tuple[int, int, int, int]
) -> int:
    """Zeros between the pixels, a depthwise convolution with the filters turned around, and the sum over
    the channels of a group."""
    rows, height, width, channels = replay.graph.shape(image)
    (down, across), (tall, broad) = stride, two_sizes(w.shape[2:], 1)
    if across > 1:
        spread = replay.reshape(image, (rows * height * width, 1, channels))
        spread = padded(replay, spread, [(0, 0), (0, across - 1), (0, 0)])
        width *= across
        image = replay.reshape(spread, (rows, height, width, channels))
    if down > 1:
        spread = replay.reshape(image, (rows * height, 1, width * channels))
        spread = padded(replay, spread, [(0, 0), (0, down - 1), (0, 0)])
        height *= down
        image = replay.reshape(spread, (rows, height, width, channels))
    need = (full[1] + tall - 1, full[2] + broad - 1)
    tails = (need[0] - (tall - 1) - height, need[1] - (broad - 1) - width)
    image = padded(
        replay, image, [(0, 0), (tall - 1, max(tails[0], 0)), (broad - 1, max(tails[1], 0)), (0, 0)]
    )
    if min(tails) < 0:
        image = replay.cut(image, (0, 0, 0, 0), (rows, *need, channels))
    filters = _filters(replay, w, (1, 2, 3, 0))
    for axis, size in ((1, tall), (2, broad)):
        if size > 1:
            shape = replay.graph.shape(filters)
            filters = replay.call("REVERSE_V2", [filters, replay.graph.integers(axis)], shape)
    once = Window(kernel=(tall, broad), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0))
    nothing = replay.graph.constant(np.zeros(channels, np.float32))
    sweep = _Sweep(window=once, padding=PADDING_VALID, shape=(*full[:3], channels))
    wide = _depthwise(replay, sweep, image, filters, nothing)
    if channels == full[3]:
        return wide
    pixels = (math.prod(full[:3]), full[3])
    groups = replay.reshape(wide, (*pixels, channels // full[3]))
    return replay.reshape(replay.call("SUM", [groups, replay.graph.integers(2)], pixels), full)
