"""Machines that are emulated: what Debian and which wheels make up a root for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["MACHINES", "PYTHON", "SUITE", "Machine", "Site"]

SUITE = "bookworm"
PYTHON = "3.11"
"""Debian 12's, which Raspberry Pi OS Bookworm has too."""
_TOOLS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")
_NEEDS_CRYPTOGRAPHY_42 = "packing_gives_exactly_the_frozen_bytes"
"""Signs with a key; Debian 12 has version 38, and there are no wheels of a newer one."""
_DEBIAN = ("python3", "python3-numpy", "python3-msgpack", "python3-cryptography", "libstdc++6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Wheels that are installed side by side, and the runtimes that must work with them."""

    name: str
    requirements: tuple[str, ...]
    runtimes: tuple[str, ...]
    with_dependencies: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """``name`` is what ``uname -m`` says, ``debian`` and ``triplet`` what Debian calls it, ``qemu`` the
    program that emulates it. The first site has the tests' tools; ``platforms`` are tags of wheels."""

    name: str
    debian: str
    triplet: str
    qemu: str
    packages: tuple[str, ...]
    platforms: tuple[str, ...]
    sites: tuple[Site, ...]
    unsuited: tuple[str, ...] = ()
    """Words in the names of tests that cannot run there."""


MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        "aarch64": Machine(
            name="aarch64",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            qemu="qemu-aarch64-static",
            packages=("python3", "libstdc++6"),
            platforms=(
                "manylinux2014_aarch64",
                "manylinux_2_27_aarch64",
                "manylinux_2_28_aarch64",
                "manylinux_2_34_aarch64",
            ),
            sites=(
                Site(
                    name="site",
                    requirements=(
                        "numpy",
                        "msgpack",
                        "cryptography",
                        "onnxruntime",
                        "ai-edge-litert",
                        *_TOOLS,
                    ),
                    runtimes=("onnx", "litert", "numpy"),
                ),
                Site(
                    name="site-tflite",
                    requirements=("numpy<2", "msgpack", "tflite-runtime"),
                    runtimes=("tflite",),
                ),
            ),
        ),
        "armhf": Machine(
            name="armv7l",
            debian="armhf",
            triplet="arm-linux-gnueabihf",
            qemu="qemu-arm-static",
            packages=_DEBIAN,
            platforms=("any", "manylinux_2_34_armv7l"),
            sites=(
                Site(name="site", requirements=_TOOLS, runtimes=("numpy",)),
                Site(
                    name="site-tflite",
                    requirements=("tflite-runtime",),
                    runtimes=("tflite",),
                    with_dependencies=False,  # numpy is Debian's
                ),
            ),
            unsuited=(_NEEDS_CRYPTOGRAPHY_42,),
        ),
        "s390x": Machine(
            name="s390x",
            debian="s390x",
            triplet="s390x-linux-gnu",
            qemu="qemu-s390x-static",
            packages=_DEBIAN,
            platforms=("any",),
            sites=(Site(name="site", requirements=_TOOLS, runtimes=("numpy",)),),
            unsuited=(_NEEDS_CRYPTOGRAPHY_42,),
        ),
    }
)
"""By the names of the command line: a 64-bit and a 32-bit ARM, and one that counts its octets backwards."""
