"""How a data set is dealt out to devices.

Dirichlet partition: Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification (2019).
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ConfigError

__all__ = ["BY_USER", "by_user", "concentration", "partition"]

BY_USER = "by-user"

FEWEST = 20


def concentration(scheme: str) -> float | None:
    """The concentration of ``dirichlet:a``; ``None`` for ``iid`` and ``by-user``.

    Raises:
        ConfigError: an unknown scheme.
    """
    if scheme in ("iid", BY_USER):
        return None
    match = re.fullmatch(r"dirichlet:(\d+(?:\.\d+)?)", scheme)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            f"partition {scheme!r} is unknown",
            hint="write iid or dirichlet:1.0, or by-user where they are people's",
        )
    return float(match[1])


def by_user(users: NDArray[Any] | None, devices: int) -> list[NDArray[np.intp]]:
    """The indices of each user's samples, of the first ``devices`` users; ``users`` has one a sample.

    Raises:
        ConfigError: fewer users than devices, or nothing tells whose the samples are.
    """
    if users is None:
        raise ConfigError(
            "the samples do not tell whose they are", hint="deal them out by iid or dirichlet:1.0"
        )
    names = np.unique(users)
    if devices > len(names):
        raise ConfigError(
            f"{devices} devices, and the samples are of {len(names)} users",
            hint=f"at most {len(names)} devices",
        )
    return [np.flatnonzero(users == name) for name in names[:devices]]


def partition(
    labels: NDArray[Any], devices: int, *, scheme: str, seed: int, users: NDArray[Any] | None = None
) -> list[NDArray[np.intp]]:
    """Deal the indices of ``labels`` out to ``devices``, each index once.

    ``by-user`` gives each device one user's (see ``by_user``); ``iid`` shuffles; ``dirichlet:a`` draws each
    label's shares from a Dirichlet distribution of concentration ``a`` (0.1: nearly one label a device, 100:
    nearly even). Every device gets at least 20 samples.

    Raises:
        ConfigError: an unknown scheme, fewer than 20 samples a device, ``dirichlet`` where ``labels`` are
            no classes (one integer each), or ``by-user`` with fewer ``users`` than devices.
    """
    if scheme == BY_USER:
        return by_user(users, devices)
    alpha = concentration(scheme)
    if alpha is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ConfigError(
            f"partition {scheme!r} deals by class, and the samples have none",
            hint="iid deals without looking",
        )
    if len(labels) < FEWEST * devices:
        raise ConfigError(
            f"{len(labels)} samples are too few for {devices} devices",
            hint=f"at most {len(labels) // FEWEST} devices",
        )
    random = np.random.default_rng(seed)
    if alpha is None:
        return [np.sort(part) for part in np.array_split(random.permutation(len(labels)), devices)]
    parts: list[list[int]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(devices, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, dealt in zip(parts, np.split(members, cuts), strict=True):
            part.extend(dealt.tolist())
    for part in parts:
        while len(part) < FEWEST:
            largest = max(parts, key=len)
            part.append(largest.pop(int(random.integers(len(largest)))))
    return [np.sort(np.array(part, dtype=np.intp)) for part in parts]
