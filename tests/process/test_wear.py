"""What a participation costs a memory card: fsyncs and bytes of a real agent, as the kernel saw them."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from hil.local_fleet import FleetOptions, LocalFleet
from hil.processes import ManagedProcess

pytestmark = pytest.mark.process

STRACE = shutil.which("strace")
CALLS = "fsync,fdatasync,write,pwrite64"
PATIENCE_S = 120.0
FEW, MANY = 3, 9
MOST_SYNCS = 6
MOST_OVERHEAD = 64 << 10


@pytest.fixture
def traced(tmp_path):
    """Runs a device through so many versions; its fsyncs, bytes written, and status at the end."""
    fleets = []

    def run(versions: int, **options) -> tuple[int, int, dict]:
        fleet = LocalFleet(
            tmp_path / f"fleet-{len(fleets)}",
            FleetOptions(
                devices=1,
                versions=versions,
                runtime="numpy",
                settings={"buffer": {"size": 1}, "publish": {"every_s": 0.5}},
                **options,
            ),
        )
        fleets.append(fleet)
        fleet.prepare()
        trace = fleet.folder / "trace"
        # -D: the agent is our child, and ends as ever; strace, told to end, would leave it behind.
        words = ["-D", "-f", "-y", "-q", "-e", f"trace={CALLS}", "-s", "0", "-o", str(trace)]
        agent = fleet.agents["dev-00"]
        fleet.agents["dev-00"] = ManagedProcess(
            "dev-00", [STRACE, *words, *agent.command], agent.log, folder=fleet.folder
        )
        fleet.start()
        assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()
        pid = fleet.agents["dev-00"].pid
        fleet.stop()
        until = time.monotonic() + PATIENCE_S
        while not re.search(rf"^{pid} +\+\+\+ exited", trace.read_text(errors="replace"), re.MULTILINE):
            assert time.monotonic() < until, "strace has not seen the agent's end"
            time.sleep(0.02)
        return *costs(trace, fleet.agent_state("dev-00")), fleet.agent_status("dev-00")

    yield run
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def personal(tmp_path):
    """A fleet's options: a model whose last layer is each device's own."""
    from models.build import build_artifact
    from models.zoo import digits
    from models.zoo.mlp import mlp

    artifact, samples = tmp_path / "artifact", tmp_path / "samples.npz"
    build_artifact(mlp((64, 32, 10)), loss="softmax_cross_entropy", personal=["layer2.*"], out=artifact)
    rows, _ = digits.split(seed=0)
    np.savez(samples, x=rows.x[:200], y=rows.y[:200])
    return {"artifact": artifact, "samples": samples}


def costs(trace: Path, state: Path) -> tuple[int, int]:
    """fsyncs of files and folders in ``state``, and bytes written to them."""
    text = trace.read_text(errors="replace")
    folder = re.escape(str(state))
    syncs = re.findall(rf"f(?:data)?sync\(\d+<{folder}[^>]*>", text)
    written = re.findall(rf"p?write(?:64)?\(\d+<{folder}[^>]*>.*= (\d+)$", text, re.MULTILINE)
    return len(syncs), sum(map(int, written))


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("case", ["inline", "chunks", "personal", "sparse"])
def test_a_participation_costs_six_fsyncs_and_twice_its_payload_at_most(traced, request, case):
    """The difference between a short life and a longer one: what the start costs is not counted. With a
    payload of 740 bytes; with one of 307 KB and a model of 81 KB, which is written too; and with a small
    one and personal tensors of 1.4 KB, which count with it: they go into the outbox and into a file. With
    sparse and 76,810 parameters: what it leaves out is kept, at half a byte each, and counts with it too;
    the model of 81 KB comes on top, being more than payload and overhead together."""
    options = {"hidden": 1024, "codec": "float32"} if case == "chunks" else {}
    if case == "sparse":
        options = {"hidden": 1024, "codec": "sparse(bits=2,keep=0.05)"}
    if case == "personal":
        options = request.getfixturevalue("personal")
    few_syncs, few_bytes, before = traced(FEW, **options)
    many_syncs, many_bytes, after = traced(MANY, **options)
    participations = after["updates"]["created"] - before["updates"]["created"]
    assert participations >= MANY - FEW
    payload = {
        "inline": 740,
        "chunks": 4 * 76_810,
        "personal": 640 + after["personal"]["bytes"],
        "sparse": 3_900 + 76_810 // 2,
    }[case]
    model = 81_500 if case == "sparse" else 0
    assert (many_syncs - few_syncs) / participations <= MOST_SYNCS
    assert (many_bytes - few_bytes) / participations <= 2 * payload + MOST_OVERHEAD + model
    assert (after["personal"]["bytes"] > 0) == (case == "personal")
    # What it says of itself: all but what sqlite adds as it opens its file and moves its log.
    assert 0 <= many_syncs - after["wear"]["syncs"] <= MOST_SYNCS + MANY
