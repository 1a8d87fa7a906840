"""What the bench asks of PyTorch, in a process of its own.

    python -m hil.bench.torch_reference record FOLDER    recordings of all families, and their options
    python -m hil.bench.torch_reference steps FAMILY     takes steps when asked (``step_times.serve``)
    python -m hil.bench.torch_reference plain FAMILY     without row weights, clipping and FedProx

``record`` writes FOLDER/families.json, the options of each build, and into FOLDER/FAMILY/ graph.onnx,
sgd.npz and adamw.npz, and drift.json: how far PyTorch is from itself in double precision.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
import torch

from hil.bench.step_times import serve
from hil.bench.torch_families import FAMILIES, HYPER, Family, TorchTraining, draw_batches, exported, recorded

__all__ = ["main"]

STEPS = 20


def main(words: list[str]) -> int:
    """Do one of the above; the exit code."""
    torch.set_num_threads(1)
    task, argument = words
    if task == "record":
        for name, family in FAMILIES.items():
            _record(family, Path(argument, name))
        options = {name: dict(family.options) for name, family in FAMILIES.items()}
        Path(argument, "families.json").write_text(json.dumps(options))
        return 0
    family = FAMILIES[argument]
    training = TorchTraining(family, optimizer="sgd", hyper=HYPER["sgd"], weighed_norms=False)
    batch = next(draw_batches(family, 1))
    take = training.step if task == "steps" else training.plain_step
    serve(lambda: take(batch))
    return 0


def _record(family: Family, folder: Path) -> None:
    folder.mkdir()
    onnx.save(exported(family), str(folder / "graph.onnx"))
    batches = list(draw_batches(family, STEPS))
    drift = {}
    for optimizer in HYPER:
        recording = recorded(family, batches, optimizer=optimizer)
        recording.save(folder / f"{optimizer}.npz")
        exact = recorded(family, batches, optimizer=optimizer, dtype=torch.float64)
        drift[optimizer] = asdict(recording.distance_to(exact))
    (folder / "drift.json").write_text(json.dumps(drift))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
