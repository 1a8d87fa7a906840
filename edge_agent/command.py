"""``lichen-agent``: the command on the device.

Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 78 bad configuration.
"""

import argparse
import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.configuration import AgentConfiguration, read_agent_configuration
from fl_protocol.errors import ConfigError, LichenError, StorageError

if TYPE_CHECKING:
    from edge_agent.supervisor import Supervisor

__all__ = ["main"]

BAD_CONFIGURATION = 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options, read_agent_configuration(options.config))
    except ConfigError as error:
        _complain(str(error))
        return BAD_CONFIGURATION
    except LichenError as error:
        _complain(str(error))
        return 1
    return code


def _run(options: argparse.Namespace, configuration: AgentConfiguration) -> int:
    from edge_agent.agent import build_agent
    from edge_agent.sqlite_file import is_damage
    from edge_agent.state_folder import StateFolder

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else logging.INFO,
        format=f"{configuration.device}: %(message)s",
    )
    with StateFolder(configuration.state) as folder:
        agent = build_agent(configuration, folder)
        while True:
            _stop_on_signals(agent)
            try:
                agent.run()
            except StorageError as error:
                before = len(folder.quarantined)
                if not is_damage(error):
                    raise
                agent = build_agent(configuration, folder)  # which sets a damaged outbox aside
                if len(folder.quarantined) == before:
                    agent.close()
                    raise
            else:
                return 0


def _stop_on_signals(agent: "Supervisor") -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: agent.stop())


def _status(options: argparse.Namespace, configuration: AgentConfiguration) -> int:
    from edge_agent.status import read_status

    status = read_status(configuration.state)
    _say(json.dumps(status, indent=2) if options.json else _status_text(status))
    return 0


def _check(options: argparse.Namespace, configuration: AgentConfiguration) -> int:
    from edge_agent.check import check

    findings = []
    for finding in check(configuration):
        findings.append(finding)
        if not options.json:
            _say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name}: {finding.detail}")
            if not finding.ok and finding.hint:
                _say(f"        {finding.hint}")
    ok = all(finding.ok for finding in findings)
    if options.json:
        _say(json.dumps({"ok": ok, "checks": [dataclasses.asdict(f) for f in findings]}, indent=2))
    return 0 if ok else 1


def _add_samples(options: argparse.Namespace, configuration: AgentConfiguration) -> int:
    import zipfile

    import numpy as np

    from edge_agent.samples import SampleStore

    try:
        with open(options.file, "rb") as content, np.load(content, allow_pickle=False) as arrays:
            x = arrays["x"]
            y = arrays.get("y")
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        _complain(f"{options.file} is not an .npz file with x (and y): {error}")
        return 1
    configuration.samples_path.parent.mkdir(parents=True, exist_ok=True)
    with SampleStore(configuration.samples_path) as store:
        ids = store.extend(x, y)
        total = len(store)
    body = {"added": len(ids), "samples": total, "path": str(configuration.samples_path)}
    _say(json.dumps(body) if options.json else f"{len(ids)} samples added, {total} in {body['path']}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def _status_text(status: dict[str, Any]) -> str:
    version = status.get("version")
    updates, outbox, samples = status.get("updates", {}), status.get("outbox", {}), status.get("samples", {})
    personal = status.get("personal", {}).get("bytes", 0)
    residual = status.get("residual", {}).get("bytes", 0)
    left = f", and {residual} of what updates left out" if residual else ""
    wrong = status.get("tls_date_error")
    memory = status.get("limits", {}).get("memory_bytes")
    lines = [
        ("device", f"{status.get('device')} of fleet {status.get('fleet')}"),
        ("state", status.get("state")),
        ("idle", status.get("idle_reason") or "-"),
        ("version", "-" if version is None else f"{status.get('epoch')}.{version}"),
        ("updates", ", ".join(f"{count} {name}" for name, count in updates.items())),
        ("outbox", f"{outbox.get('count', 0)} waiting, {outbox.get('bytes', 0)} bytes{left}"),
        ("personal", f"{personal} bytes, which stay on this device" if personal else "-"),
        ("samples", f"{samples.get('training', 0)} to train on, {samples.get('held_out', 0)} held out"),
        ("memory", f"at most {memory >> 20} MiB for the whole agent" if memory else "not limited as a whole"),
        ("clock", f"wrong, or the broker's certificate is: {wrong}" if wrong else "-"),
        ("traffic", f"{status.get('bytes_sent')} bytes sent, {status.get('bytes_received')} received"),
    ]
    return "\n".join(f"{name:<9}{text}" for name, text in lines)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--config", type=Path, default=Path("agent.toml"), help="configuration (default: agent.toml)"
    )
    listing = argparse.ArgumentParser(add_help=False)
    listing.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(prog="lichen-agent", description="The Lichen agent of this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[shared], help="run until stopped")
    run.add_argument("--verbose", action="store_true", help="log ignored messages too")
    run.set_defaults(run=_run)
    status = commands.add_parser("status", parents=[shared, listing], help="what it does and why")
    status.set_defaults(run=_status)
    check = commands.add_parser("check", parents=[shared, listing], help="is this device ready?")
    check.set_defaults(run=_check)
    samples = commands.add_parser("samples", help="the samples of this device")
    actions = samples.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", parents=[shared, listing], help="add the samples of an .npz file")
    add.add_argument("file", type=Path, metavar="FILE.npz", help="arrays x and (optionally) y, a row each")
    add.set_defaults(run=_add_samples)
    return parser
