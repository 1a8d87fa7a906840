"""``python -m hil.emulation [MACHINE...]``: vectors, codecs and golden steps on other processors.

What was frozen must read to the same bits, and every runtime that is there must reproduce the golden steps of
every artifact of the zoo. Exit code 0 if all do, 1 if not, 2 if this machine cannot emulate.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fl_protocol.artifact import MANIFEST_NAME
from fl_protocol.errors import LichenError
from hil.emulation.machines import MACHINES, Machine
from hil.emulation.root import Root, missing_tools

__all__ = ["main"]

TIMEOUT_S = 600.0
TESTS = (
    "tests/fl_protocol/test_codec_buffers.py",
    "tests/fl_protocol/test_codec_contract.py",
    "tests/fl_protocol/test_codec_identity.py",
    "tests/fl_protocol/test_codec_model.py",
    "tests/fl_protocol/test_codec_vectors.py",
    "tests/fl_protocol/test_message_vectors.py",
    "tests/independent/test_decoder.py",
)
_UNSUITED = ("memory", "mean_error", "runs_by_itself")
"""Statistics that need minutes under emulation, and a test that starts another program."""
_ZOO = Path(__file__).parents[2] / "models" / "zoo"


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hil.emulation", description=__doc__)
    parser.add_argument("machine", nargs="*", help=f"{', '.join(MACHINES)}; default: aarch64")
    parser.add_argument("--root", type=Path, default=Path(".emulation"), help="folder that roots are kept in")
    options = parser.parse_args(words)
    names = options.machine or ["aarch64"]
    unknown = [name for name in names if name not in MACHINES]
    if unknown:
        parser.error(f"there is no machine {', '.join(unknown)}: name some of {', '.join(MACHINES)}")
    machines = [MACHINES[name] for name in names]
    missing = missing_tools(machines)
    if missing:
        sys.stderr.write("emulation needs\n" + "".join(f"  {line}\n" for line in missing))
        return 2
    faults = 0
    for machine in machines:
        try:
            for line, good in _examined(machine, options.root):
                faults += not good
                sys.stdout.write(f"{machine.name:8} {'ok  ' if good else 'FAIL'} {line}\n")
                sys.stdout.flush()
        except LichenError as error:
            faults += 1
            sys.stdout.write(f"{machine.name:8} FAIL {error}\n")
    return 1 if faults else 0


def _examined(machine: Machine, folder: Path) -> Iterator[tuple[str, bool]]:
    """A sentence for each thing that was looked at, and whether it is well."""
    began = time.monotonic()
    root = Root(machine, folder)
    root.make()
    _place_artifacts(root.path / "opt" / "artifacts")
    yield f"root of {machine.debian} ready in {time.monotonic() - began:.0f} s", True
    for site in machine.sites:
        words = ["-m", "hil.emulation.inside", "/opt/artifacts", *site.runtimes]
        done = root.run(words, site=site.name, timeout_s=TIMEOUT_S)
        about, *trials = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] or [
            {}
        ]
        if done.returncode or not trials:
            yield f"{site.name}: ended with {done.returncode}\n{_end(done.stderr)}", False
            continue
        yield ", ".join(f"{name} {value}" for name, value in about.items()), about["machine"] == machine.name
        yield from map(_told, trials)
    began = time.monotonic()
    # Emulated floating-point units raise flags that real ones do not: warnings are no errors there.
    suited = " and ".join(f"not {word}" for word in (*_UNSUITED, *machine.unsuited))
    words = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-o", "filterwarnings="]
    words += [
        "--hypothesis-profile=ci",
        "--rootdir=/opt/lichen",
        "-c",
        "/opt/lichen/pyproject.toml",
        "-k",
        suited,
    ]
    words += [f"/opt/lichen/{test}" for test in TESTS]
    done = root.run(words, site=machine.sites[0].name, timeout_s=TIMEOUT_S)
    verdict = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
    if done.returncode:
        verdict += f"\n{_end(done.stdout)}\n{_end(done.stderr)}"
    yield f"frozen vectors and codecs: {verdict}", done.returncode == 0


def _place_artifacts(folder: Path) -> None:
    """Every artifact that the zoo brings along."""
    shutil.rmtree(folder, ignore_errors=True)
    for manifest in _ZOO.rglob(MANIFEST_NAME):
        shutil.copytree(manifest.parent, folder / manifest.parent.relative_to(_ZOO))


def _told(trial: dict[str, Any]) -> tuple[str, bool]:
    name = f"{trial['artifact']} on {trial['runtime']}"
    if trial["reason"]:
        return f"{name}: {' '.join(trial['reason'].split())}", False
    return f"{name}: golden steps within {trial['deviation']:.1e}", True


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-25:])


if __name__ == "__main__":
    sys.exit(main())
