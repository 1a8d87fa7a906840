"""Gradient rules of convolutions: each gradient is a convolution again.

Dumoulin, Visin: A guide to convolution arithmetic for deep learning (2016), chapter 4.
"""

from collections.abc import Sequence

from models.build.site import Gradients, Site, rule
from models.build.window import Window

__all__: list[str] = []

_TO_THE_START = -(1 << 31) + 1


@rule("Conv")
def _conv(site: Site) -> Gradients:
    x, w = site.inputs[:2]
    window = Window.of(site.node, tuple(site.sizes(w, 2)))
    dx = _image_gradient(site, window)
    dw = _kernel_gradient(site, window, image=x, error=site.dy)
    return dx, dw, *_bias_gradient(site)


@rule("ConvTranspose")
def _conv_transpose(site: Site) -> Gradients:
    graph = site.graph
    x, w = site.inputs[:2]
    window = Window.of(site.node, tuple(site.sizes(w, 2)))
    group = int(site.attribute("group", 1))
    rank = len(window.kernel)
    dx = graph.op(
        "Conv",
        site.dy,
        w,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=group,
    )
    # With output padding the window fits once more than it was placed.
    covered = [
        (size + before + after - reach - 1) // stride + 1
        for size, before, after, reach, stride in zip(
            site.sizes(site.y, 2), window.before, window.after, window.reach, window.strides, strict=True
        )
    ]
    if covered != site.sizes(x, 2):
        dx = graph.op(
            "Slice",
            dx,
            graph.integers(*[0] * rank),
            graph.integers(*site.sizes(x, 2)),
            graph.integers(*range(2, 2 + rank)),
        )
    dw = _kernel_gradient(site, window, image=site.dy, error=x)
    return dx, dw, *_bias_gradient(site)


def _image_gradient(site: Site, window: Window) -> str:
    graph, rank = site.graph, len(window.kernel)
    x, w = site.inputs[:2]
    group = int(site.attribute("group", 1))
    shape = site.shape(w)
    margins = [
        [reach - pad for reach, pad in zip(window.reach, pads, strict=True)]
        for pads in (window.before, window.after)
    ]
    depthwise = shape[0] == group and shape[1] == 1
    if (group == 1 or depthwise) and set(window.strides) == {1} and min(map(min, margins)) >= 0:
        # A plain Conv with the kernel turned around: faster than a ConvTranspose in every runtime.
        turned = w
        if max(window.kernel) > 1:
            turned = graph.op(
                "Slice",
                w,
                graph.integers(*[-1] * rank),
                graph.integers(*[_TO_THE_START] * rank),
                graph.integers(*range(2, 2 + rank)),
                graph.integers(*[-1] * rank),
            )
        if group == 1:
            turned = graph.op("Transpose", turned, perm=[1, 0, *range(2, 2 + rank)])
        return graph.op(
            "Conv",
            site.dy,
            turned,
            kernel_shape=window.kernel,
            strides=window.strides,
            dilations=window.dilations,
            pads=[*margins[0], *margins[1]],
            group=group,
        )
    spanned = window.spanned(site.sizes(site.y, 2))
    return graph.op(
        "ConvTranspose",
        site.dy,
        w,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output_padding=[
            size + before + after - span
            for size, before, after, span in zip(
                site.sizes(x, 2), window.before, window.after, spanned, strict=True
            )
        ],
        group=group,
    )


def _kernel_gradient(site: Site, window: Window, *, image: str, error: str) -> str:
    """The image convolved with the error: batch and channels swap places, strides and dilations too."""
    graph, rank = site.graph, len(window.kernel)
    group = int(site.attribute("group", 1))
    # A gradient has the shape of its value, which alone is known.
    like = {site.dy: site.y}
    (channels, *sizes), errors = site.sizes(like.get(image, image), 1), site.sizes(like.get(error, error), 2)
    swap = [1, 0, *range(2, 2 + rank)]
    if group == 1:
        channels_first = graph.op("Transpose", image, perm=swap)
    else:
        # [channels of a group, groups x batch, ...]: the batch lies beside the groups.
        split = graph.op("Reshape", image, graph.integers(0, group, channels // group, *sizes))
        split = graph.op("Transpose", split, perm=[2, 1, 0, *range(3, 3 + rank)])
        channels_first = graph.op("Reshape", split, graph.integers(channels // group, -1, *sizes))
    # Pixels at the far edge that no window reached make the result too large: less padding leaves them out.
    surplus = [
        dilation * (count - taps)
        for count, taps, dilation in zip(
            _covered(window, sizes, errors, window.after), window.kernel, window.dilations, strict=True
        )
    ]
    after = [max(pad - more, 0) for pad, more in zip(window.after, surplus, strict=True)]
    gradient = graph.op(
        "Conv",
        channels_first,
        graph.op("Transpose", error, perm=swap),
        kernel_shape=errors,
        strides=window.dilations,
        dilations=window.strides,
        pads=[*window.before, *after],
        group=group,
    )
    if _covered(window, sizes, errors, after) != window.kernel:
        gradient = graph.op(
            "Slice",
            gradient,
            graph.integers(*[0] * rank),
            graph.integers(*window.kernel),
            graph.integers(*range(2, 2 + rank)),
        )
    return graph.op("Transpose", gradient, perm=swap)


def _covered(
    window: Window, sizes: Sequence[int], errors: Sequence[int], after: Sequence[int]
) -> tuple[int, ...]:
    """How many taps a kernel's gradient has for an image of ``sizes``, padded by ``after`` at its end."""
    return tuple(
        (size + before + end - stride * (count - 1) - 1) // dilation + 1
        for size, before, end, stride, count, dilation in zip(
            sizes, window.before, after, window.strides, errors, window.dilations, strict=True
        )
    )


def _bias_gradient(site: Site) -> Gradients:
    if len(site.inputs) < 3:
        return ()
    axes = [axis for axis in range(len(site.shape(site.y))) if axis != 1]
    return (site.graph.op("ReduceSum", site.dy, site.graph.integers(*axes), keepdims=0),)
