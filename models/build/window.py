"""The sliding window of a convolution or a pool: kernel, strides, dilations and pads, written out."""

from dataclasses import dataclass

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import attribute, described

__all__ = ["Window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One entry per spatial dimension; ``before`` and ``after`` are the pads at its two ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, kernel: tuple[int, ...]) -> "Window":
        """Read a node's attributes; ``kernel`` is its size.

        Raises:
            ArtifactError: the pads are to be computed (``auto_pad``; a lowering writes them out).
        """
        rank = len(kernel)
        if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
            raise ArtifactError(
                f"{described(node)}: its padding depends on a size that is not fixed",
                hint="export the model with explicit pads",
            )
        ones = [1] * rank
        pads = tuple(attribute(node, "pads", [0] * (2 * rank)))
        return cls(
            kernel=kernel,
            strides=tuple(attribute(node, "strides", ones)),
            dilations=tuple(attribute(node, "dilations", ones)),
            before=pads[:rank],
            after=pads[rank:],
        )

    @property
    def pads(self) -> list[int]:
        """The attribute ``pads``: all beginnings, then all ends."""
        return [*self.before, *self.after]

    @property
    def reach(self) -> tuple[int, ...]:
        """From the window's first tap to its last, per dimension."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True))

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(self.pads)

    def spanned(self, sizes: list[int]) -> tuple[int, ...]:
        """How much of a padded input ``sizes`` output positions cover."""
        return tuple(
            (size - 1) * stride + reach + 1
            for size, stride, reach in zip(sizes, self.strides, self.reach, strict=True)
        )
