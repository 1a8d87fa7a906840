"""The bench `boards`: every scenario on the emulated board, and what flashing, booting and training cost.

It takes what `make hil BOARDS=qemu` takes, root's rights among it, hence only where it is asked for by name.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_protocol.errors import LichenError
from hil.bench.markdown_table import table_rows

__all__ = ["boards", "boards_section"]

BOARD = "qemu"
RUN_S = 7200.0
_NEEDED = (
    *("ready_to_boot_s", "flash_s", "copy_s", "first_connection_s", "first_update_s"),
    *("agent_rss_mib", "training_rss_mib"),
)
_SECTION = """
## The emulated board

`make bench ARGS="--only boards"`: a stand-in for Raspberry Pi OS in an emulated arm64 machine of 512 MB,
without hardware virtualisation; [guide-hil.md](guide-hil.md) says what it is and what it is not. {passed} of
{count} scenarios went well, in {minutes:.0f} minutes, card and payload made anew, the image {image}.

| figure | value | bound |
| --- | --- | --- |
{rows}

Memory is the most that was seen in the run: the agent connected with mutual TLS, and the peak of the worker
that trains the digits (76,810 parameters) on ONNX Runtime. Copying is every byte of the image, and an fsync.
"""


def boards(report: Path | None = None) -> dict[str, Any]:
    """Run the scenarios on the emulated board; or take them from ``report``, the JSON beside a page of
    ``--hil-report``.

    Raises:
        LichenError: a scenario failed, something was not measured, or the report is of another board.
    """
    if report is not None:
        return _figures(json.loads(report.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        words = ["--board", BOARD, "-p", "no:cacheprovider", "--hil-report", str(page)]
        try:
            subprocess.run(
                [sys.executable, "-m", "pytest", "--pyargs", "hil.boards", *words],
                stdout=sys.stderr,
                timeout=RUN_S,
                check=False,
            )
            return _figures(json.loads(page.with_suffix(".json").read_text()))
        except subprocess.TimeoutExpired:
            raise LichenError(f"the scenarios take longer than {RUN_S:.0f} s") from None
        except OSError as error:
            raise LichenError(f"no scenario ran: {error}", hint="see what pytest said") from None


def boards_section(figures: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = (
        ("flashing a card, s", f"{figures['flash_s']:.1f}", ""),
        ("beyond copying the image, s", f"{figures['flash_s'] - figures['copy_s']:.1f}", "<= 5"),
        ("first boot to a connected agent with samples, s", f"{figures['first_connection_s']:.0f}", ""),
        ("first boot to the first accepted update, s", f"{figures['first_update_s']:.0f}", ""),
        ("agent, connected, MiB", f"{figures['agent_rss_mib']:.1f}", "<= 45"),
        ("agent and worker in training, MiB", f"{figures['training_rss_mib']:.1f}", "<= 170"),
    )
    made = figures.get("image_s")
    return _SECTION.format(
        passed=figures["passed"],
        count=figures["count"],
        minutes=figures["seconds"] / 60,
        image=f"too ({made:.0f} s)" if made else "from the cache",
        rows=table_rows(rows),
    )


def _figures(body: Mapping[str, Any]) -> dict[str, Any]:
    there = [outcome for outcome in body["outcomes"] if outcome["board"] == BOARD]
    measured = body["figures"].get(BOARD, {})
    failed = [outcome["scenario"] for outcome in there if outcome["result"] == "failed"]
    if failed or not there:
        raise LichenError(f"no figures of {BOARD}: {', '.join(failed) or 'no scenario ran on it'}")
    if missing := [name for name in _NEEDED if name not in measured]:
        raise LichenError(
            f"no figures of {BOARD}: {', '.join(missing)} not measured",
            hint="run every scenario: a part of them may not train for long enough",
        )
    return {
        **measured,
        "count": len(there),
        "passed": sum(1 for outcome in there if outcome["result"] == "passed"),
        "seconds": round(sum(outcome["seconds"] for outcome in there) + measured["ready_to_boot_s"], 1),
    }
