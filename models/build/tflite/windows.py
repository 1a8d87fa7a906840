"""The sliding window of a convolution or a pool, and what all its places see, gathered in one tensor.

A convolution is the product of that tensor with the filters (Chellapilla, Puri, Simard: High performance
convolutional neural networks for document processing, 2006). TFLite's CONV_2D takes filters that change
from step to step twice as long: XNNPACK has products of two computed matrices, but no such convolution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fl_protocol.errors import ArtifactError
from models.build.tflite.attributes import integers, word
from models.build.tflite.replay import Replay
from models.build.tflite.shapes import padded
from models.runtime.onnx_reader import Node

__all__ = ["Window", "gathered", "is_worth_gathering", "two_sizes", "window_of"]

_LARGEST_GATHERING = 1 << 20
"""Elements, 4 MiB: of larger ones a device would feel the memory before the time."""
_LEAST_CHANNELS = 4
"""Shorter stretches of memory take longer to gather than a product saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window's geometry, height and width: sizes, strides, dilations, and the margins before and after."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    def outputs(self, sizes: Sequence[int]) -> tuple[int, int]:
        """How often the window fits into an image of these sizes."""
        height, width = (
            (sizes[i] + self.before[i] + self.after[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return height, width

    def is_same(self, sizes: Sequence[int]) -> bool:
        """Whether the margins are those of TFLite's SAME."""
        for i in (0, 1):
            count = -(-sizes[i] // self.stride[i])
            reach = (count - 1) * self.stride[i] + (self.kernel[i] - 1) * self.dilation[i] + 1
            total = max(reach - sizes[i], 0)
            if (self.before[i], self.after[i]) != (total // 2, total - total // 2):
                return False
        return True


def two_sizes(values: Sequence[int], missing: int) -> tuple[int, int]:
    """Height and width; one dimension has a width of ``missing``."""
    if len(values) not in (1, 2):
        raise ArtifactError(f"an image of {len(values)} dimensions", hint="one or two dimensions")
    return values[0], values[1] if len(values) == 2 else missing


def window_of(node: Node, kernel: Sequence[int]) -> Window:
    if word(node, "auto_pad", "NOTSET") != "NOTSET":
        raise ArtifactError("padding chosen by auto_pad", hint="export with explicit pads")
    rank = len(kernel)
    pads = integers(node, "pads", [0] * 2 * rank)
    if min(pads, default=0) < 0:
        raise ArtifactError(f"negative padding {pads}", hint="cut the input with Slice")
    return Window(
        kernel=two_sizes(kernel, 1),
        stride=two_sizes(integers(node, "strides", [1] * rank), 1),
        dilation=two_sizes(integers(node, "dilations", [1] * rank), 1),
        before=two_sizes(pads[:rank], 0),
        after=two_sizes(pads[rank:], 0),
    )


def is_worth_gathering(replay: Replay, image: int, window: Window, places: Sequence[int]) -> bool:
    """Whether a convolution of a tensor [rows, height, width, channels] shall be a product."""
    rows, *_, channels = replay.graph.shape(image)
    elements = rows * math.prod(places) * math.prod(window.kernel) * channels
    return channels >= _LEAST_CHANNELS and elements <= _LARGEST_GATHERING


def gathered(replay: Replay, image: int, window: Window, places: Sequence[int]) -> int:
    """What the window sees at its first ``places``, down and across, of [rows, height, width, channels].

    Returns [rows x places, taps x channels].
    """
    rows, height, width, channels = replay.graph.shape(image)
    # As many rows and columns as whole strides need, so that a stride is a dimension of its own.
    needed = [
        stride * (count + dilation * (taps - 1) // stride)
        for stride, count, dilation, taps in zip(
            window.stride, places, window.dilation, window.kernel, strict=True
        )
    ]
    after = [
        need - size - before
        for need, size, before in zip(needed, (height, width), window.before, strict=True)
    ]
    margins = [(before, max(more, 0)) for before, more in zip(window.before, after, strict=True)]
    if any(map(any, margins)):
        image = padded(replay, image, [(0, 0), *margins, (0, 0)])
    image = replay.cut(image, (0, 0, 0, 0), (rows, *needed, channels))
    taps = [
        _tap(replay, image, window, (down * window.dilation[0], across * window.dilation[1]), places)
        for down in range(window.kernel[0])
        for across in range(window.kernel[1])
    ]
    wide = (*replay.graph.shape(taps[0])[:3], channels * len(taps))
    joined = taps[0] if len(taps) == 1 else replay.call("CONCATENATION", taps, wide, axis=3)
    return replay.reshape(joined, (rows * math.prod(places), wide[3]))


def _tap(replay: Replay, image: int, window: Window, start: Sequence[int], places: Sequence[int]) -> int:
    """The pixels that one tap of the window sees: channels last, as many as there are rows and places.

    STRIDED_SLICE would take many times as long.
    """
    rows, height, width, channels = replay.graph.shape(image)
    (top, left), (down, across) = start, window.stride
    if window.stride == (1, 1):
        return replay.cut(image, (0, top, left, 0), (rows, *places, channels))
    lines = replay.reshape(image, (rows, height // down, down, width * channels))
    lines = replay.cut(lines, (0, top // down, top % down, 0), (rows, places[0], 1, width * channels))
    pixels = replay.reshape(lines, (rows * places[0], width // across, across, channels))
    start_at, shape = (0, left // across, left % across, 0), (rows * places[0], places[1], 1, channels)
    return replay.cut(pixels, start_at, shape)
