"""The section of docs/benchmarks.md on training beside PyTorch, from its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from hil.bench.markdown_table import table_rows

__all__ = ["training_section"]

_SECTION = """
## Training beside PyTorch

`make bench ARGS="--only training"`, against PyTorch {torch} in eager mode: onnxruntime {onnx}, LiteRT {litert}, NumPy
{numpy}{tflite}. 20 steps of 32 rows that weigh 0, 0.5, 1 or 2, clipped by global norm and pulled to an anchor.

**Exactness.** SGD with momentum: the largest difference of a mean loss, and of a weight, over 20 steps in a row; in
brackets over single steps, each from PyTorch's own state before it. PyTorch's own float32 against its float64 stands
beside. Bound: 1e-5. Where 20 steps in a row are beyond it and single steps are not, a unit at the kink of its
activation has flipped by rounding, as PyTorch's own do.

| family | {heads} | PyTorch, 32 against 64 bits |
| --- | {dashes} | --- |
{exact}

AdamW, losses alone (its step divides by the root of tiny numbers, so that weights differ more); of a flip the same
holds, and one step in the wrong direction is as long as any other:

| family | {heads} | PyTorch, 32 against 64 bits |
| --- | {dashes} | --- |
{adamw}

**Time of a step**, batch 32, one thread, in processes that take turns: milliseconds of the fastest, and the median
ratio to PyTorch's same step. "Plain" is PyTorch's step without row weights, clipping and FedProx. Bounds: onnx at most
1.2 of PyTorch for the CNN with group norm and 0.8 for the MLP; LiteRT at most 1.35 of onnx, tflite-runtime 1.8.

| family | PyTorch, ms | plain, ms | {step_heads} | LiteRT to onnx |{tflite_head}
| --- | --- | --- | {step_dashes} | --- |{tflite_dash}
{steps}

**Size and build.** Bytes of the step's graph, and of all three .tflite files; the CPU
seconds of the fastest of five builds in one thread, the export left out. Bound of a build: 1 s.

| family | parameters | step.onnx | bound | .tflite | bound | build, CPU s |
| --- | --- | --- | --- | --- | --- | --- |
{sizes}

**Memory.** Peak RSS of a real worker process that trains the CNN with group norm: {memory}. Bounds: 100 MiB with onnx,
75 with LiteRT.
"""

_SIZE_BOUNDS: Mapping[str, tuple[int, int]] = {
    "mlp": (9_269, 22_462),
    "cnn, group norm": (23_635, 65_582),
    "cnn, batch norm": (25_881, 68_490),
    "conv1d, depthwise": (16_705, 71_878),
    "transformer": (31_835, 100_298),
    "gru": (80_005, 284_966),
    "lstm": (71_126, 260_964),
}
"""Bytes of step.onnx and of the .tflite files."""


def training_section(figures: Mapping[str, Any]) -> str:
    """The section; its figures are those of ``hil.bench.training``."""
    families: Sequence[Mapping[str, Any]] = figures["families"]
    versions: Mapping[str, str] = figures["versions"]
    runtimes = list(families[0]["deviation"])
    lite = "tflite" in runtimes
    memory = [
        f"{mib} MiB with {runtime}" for family in families for runtime, mib in family["worker_mib"].items()
    ]
    return _SECTION.format(
        **{name: version for name, version in versions.items() if name != "tflite"},
        tflite=f", tflite-runtime {versions['tflite']}" if lite else "",
        heads=" | ".join(runtimes),
        dashes=" | ".join("---" for _ in runtimes),
        step_heads=" | ".join(f"{runtime}, ms | ratio" for runtime in runtimes),
        step_dashes=" | ".join("--- | ---" for _ in runtimes),
        tflite_head=" tflite to onnx |" if lite else "",
        tflite_dash=" --- |" if lite else "",
        exact=table_rows(_exactness_row(family, runtimes) for family in families),
        adamw=table_rows(_adamw_row(family, runtimes) for family in families),
        steps=table_rows(_step_row(family, runtimes) for family in families),
        sizes=table_rows(_size_row(family) for family in families),
        memory=", ".join(memory),
    )


def _exactness_row(family: Mapping[str, Any], runtimes: Sequence[str]) -> Sequence[str]:
    cells = [family["deviation"][runtime]["sgd"] for runtime in runtimes]
    drift = family["drift"]["sgd"]
    return [
        family["family"],
        *(
            f"{cell['loss']:.0e}, {cell['weights']:.0e} ({cell['one_loss']:.0e}, {cell['one_weights']:.0e})"
            for cell in cells
        ),
        f"{drift['loss']:.0e}, {drift['weights']:.0e}",
    ]


def _adamw_row(family: Mapping[str, Any], runtimes: Sequence[str]) -> Sequence[str]:
    cells = [family["deviation"][runtime]["adamw"] for runtime in runtimes]
    return [
        family["family"],
        *(f"{cell['loss']:.0e} ({cell['one_loss']:.0e})" for cell in cells),
        f"{family['drift']['adamw']['loss']:.0e}",
    ]


def _step_row(family: Mapping[str, Any], runtimes: Sequence[str]) -> Sequence[str]:
    step = family["step"]
    cells = [
        cell for name in runtimes for cell in (f"{step[name]['ms']:.2f}", f"{step[name]['to_torch']:.2f}")
    ]
    relative = [f"{step[name]['to_onnx']:.2f}" for name in ("litert", "tflite") if name in step]
    plain = f"{step['torch_plain']['ms']:.2f}"
    return [family["family"], f"{step['torch']['ms']:.2f}", plain, *cells, *relative]


def _size_row(family: Mapping[str, Any]) -> Sequence[str]:
    bounds = [f"{bound:,}" for bound in _SIZE_BOUNDS.get(family["family"], ())] or ["", ""]
    return [
        family["family"],
        f"{family['parameters']:,}",
        f"{family['step_onnx_bytes']:,}",
        bounds[0],
        f"{family['tflite_bytes']:,}",
        bounds[1],
        f"{family['build_cpu_s']:.2f}",
    ]
