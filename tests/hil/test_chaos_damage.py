"""Damage to files, and clocks that jump."""

import json
import random
import subprocess
import sys

import pytest

from hil.chaos.clock import YEAR_S, MovableClock, build_shim
from hil.chaos.damage import SECTOR_BYTES, damage, pick

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def file(tmp_path):
    """A file of eight sectors."""
    path = tmp_path / "agent.db"
    path.write_bytes(CONTENT)
    return path


def test_a_flip_turns_one_bit(file):
    """Nothing else changes, not even the length."""
    damage(file, "flip", random.Random(1))
    after = file.read_bytes()
    assert len(after) == len(CONTENT)
    assert sum((a ^ b).bit_count() for a, b in zip(CONTENT, after, strict=True)) == 1


def test_a_block_overwrites_one_sector(file):
    """As a card does that fails: all of a sector, and nothing beside it."""
    damage(file, "block", random.Random(1))
    after = file.read_bytes()
    sectors = {at // SECTOR_BYTES for at in range(len(CONTENT)) if CONTENT[at] != after[at]}
    assert len(after) == len(CONTENT)
    assert len(sectors) == 1


def test_a_cut_takes_the_end_away(file):
    """The rest stays as it was."""
    damage(file, "cut", random.Random(1))
    after = file.read_bytes()
    assert len(after) < len(CONTENT)
    assert CONTENT.startswith(after)


def test_damage_is_repeated_by_its_seed(file, tmp_path):
    """The same byte of the same file."""
    twin = tmp_path / "twin.db"
    twin.write_bytes(CONTENT)
    damage(file, "flip", random.Random(5))
    damage(twin, "flip", random.Random(5))
    assert file.read_bytes() == twin.read_bytes()


def test_nothing_is_picked_where_there_is_nothing(tmp_path):
    """An empty file cannot be damaged."""
    (tmp_path / "agent.db").touch()
    assert pick(tmp_path, "agent.db", random.Random(1)) is None


CLOCKS = """
import json, sys, time
for line in sys.stdin:
    before = time.monotonic()
    time.sleep(0.01)
    print(json.dumps([time.time(), time.monotonic() - before]), flush=True)
"""


def test_a_wall_clock_jumps_while_its_process_runs(tmp_path):
    """By years, there and back; sleeping, and the clock that intervals are taken from, go on as before."""
    shim = build_shim(tmp_path)
    if shim is None:
        pytest.skip("no C compiler here")
    clock = MovableClock(shim, tmp_path / "clock")

    def ask(process) -> tuple[float, float]:
        process.stdin.write("\n")
        process.stdin.flush()
        return tuple(json.loads(process.stdout.readline()))

    with subprocess.Popen(
        [sys.executable, "-c", CLOCKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clock.environment,
    ) as process:
        now, _ = ask(process)
        clock.move(30)
        late, slept = ask(process)
        clock.move(-40)
        early, _ = ask(process)
        process.stdin.close()
    assert late - now >= 30 * YEAR_S
    assert early - now < -39 * YEAR_S
    assert 0.01 <= slept < YEAR_S
