"""``python -m hil.bench``: measure, and write docs/benchmarks.json and docs/benchmarks.md.

Sections that were not asked for keep their last figures.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_protocol.errors import LichenError
from hil.bench.boards import boards
from hil.bench.buffer_memory import buffer_memory
from hil.bench.codec import codec
from hil.bench.demos import seeds, traffic
from hil.bench.feedback import feedback
from hil.bench.footprint import footprint
from hil.bench.hard_fleets import hard_fleets
from hil.bench.ingest import ingest
from hil.bench.links import links
from hil.bench.load import load
from hil.bench.page import page
from hil.bench.peers import peers
from hil.bench.server_rules import server_rules
from hil.bench.simulator import LARGEST, simulator
from hil.bench.stability import stability
from hil.bench.to_target import target
from hil.bench.training import training
from hil.bench.zoo import zoo

__all__ = ["main"]


def main(words: list[str] | None = None) -> int:
    """Measure the sections that are asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=[
            *("demo", "traffic", "footprint", "ingest", "load", "links", "zoo", "training", "codec"),
            *("feedback", "target", "hard_fleets", "stability", "server_rules", "buffer_memory", "simulator"),
            "peers",
            "boards",
        ],
    )
    parser.add_argument("--seeds", type=int, default=10, help="demos of the section demo")
    parser.add_argument(
        "--target-seeds", type=int, default=5, help="runs of each cell of target and hard_fleets"
    )
    parser.add_argument(
        "--row-seeds", type=int, default=5, help="runs of each row of feedback, stability and server_rules"
    )
    parser.add_argument("--largest", action="store_true", help=f"simulator: a fleet of {LARGEST:,} too")
    parser.add_argument("--updates", type=int, default=100_000, help="updates of the section ingest")
    parser.add_argument(
        "--hil-report", type=Path, metavar="FILE.json", help="boards: take the figures of that run"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where benchmarks.json and .md lie")
    options = parser.parse_args(words)
    sections: Mapping[str, Callable[[], Any]] = {
        "demo": lambda: seeds(options.seeds),
        "traffic": lambda: list(traffic()),
        "footprint": lambda: [footprint("onnx"), footprint("numpy")],
        "ingest": lambda: ingest(options.updates),
        "load": load,
        "links": lambda: list(links()),
        "zoo": zoo,
        "training": training,
        "codec": codec,
        "target": lambda: target(options.docs / "benchmarks-target.jsonl", options.target_seeds),
        "hard_fleets": lambda: hard_fleets(
            options.docs / "benchmarks-hard-fleets.jsonl", options.target_seeds
        ),
        "feedback": lambda: feedback(options.row_seeds),
        "stability": lambda: stability(options.row_seeds),
        "server_rules": lambda: server_rules(options.row_seeds),
        "buffer_memory": buffer_memory,
        "simulator": lambda: simulator(largest=LARGEST if options.largest else 0),
        "boards": lambda: boards(options.hil_report),
    }
    apart: Mapping[str, Callable[[], Any]] = {"peers": peers}  # needs another environment: `make bench-peers`
    book = options.docs / "benchmarks.json"
    figures: dict[str, Any] = json.loads(book.read_text()) if book.exists() else {}
    # Boards take root's rights and an emulator.
    for name in options.only or (name for name in sections if name != "boards"):
        sys.stderr.write(f"measuring {name}\n")
        try:
            figures[name] = {**sections, **apart}[name]()
        except LichenError as error:
            sys.stderr.write(f"error: {name}: {error}\n")
            return 1
        sys.stderr.write(json.dumps(figures[name]) + "\n")
        book.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
        (options.docs / "benchmarks.md").write_text(page(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
