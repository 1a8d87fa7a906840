"""Roles: which of a model's tensors are trained, which of those travel, and which stay on the device."""

import fnmatch
from collections.abc import Collection, Iterable, Sequence

from fl_protocol.errors import ArtifactError

__all__ = ["BATCH_NORM", "FROZEN", "PERSONAL", "TRAINABLE", "roles_of"]

BATCH_NORM = ("local", "averaged", "frozen")
"""What may become of the running statistics of a batch normalisation: each device keeps its own (Li et al.:
FedBN, 2021), they travel and are averaged, or they stay as exported and serve in training too."""
TRAINABLE, FROZEN, PERSONAL = "trainable", "frozen", "personal"


def roles_of(
    names: Iterable[str],
    buffers: Collection[str],
    *,
    train: Sequence[str] | None,
    personal: Sequence[str] | None,
    batch_norm: str,
) -> dict[str, str]:
    """The role of each tensor; ``buffers`` are the running statistics among them. See ``lift``.

    Raises:
        ArtifactError: an unknown policy, a pattern that matches nothing, or no weight that travels.
    """
    names = list(names)
    if batch_norm not in BATCH_NORM:
        raise ArtifactError(
            f"there is no policy {batch_norm!r} for batch normalisation",
            hint=f"there are {', '.join(BATCH_NORM)}",
        )
    for pattern in (*(train or ()), *(personal or ())):
        if not any(_matches(name, [pattern]) for name in names):
            raise ArtifactError(
                f"no parameter matches {pattern!r}", hint=f"there are {', '.join(names)}"[:500]
            )
    kept = {"local": PERSONAL, "averaged": TRAINABLE, "frozen": FROZEN}[batch_norm]

    def role(name: str) -> str:
        mine = _matches(name, personal or ())
        if name in buffers:
            return PERSONAL if mine and kept != FROZEN else kept
        if mine:
            return PERSONAL
        return TRAINABLE if train is None or _matches(name, train) else FROZEN

    roles = {name: role(name) for name in names}
    if not any(roles[name] == TRAINABLE for name in names if name not in buffers):
        raise ArtifactError(
            "no weight is both trained and shared, so that there would be nothing to send",
            hint="leave at least one to train that no --personal pattern matches",
        )
    return roles


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
