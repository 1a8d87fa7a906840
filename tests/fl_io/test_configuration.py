"""Configuration files: every fault at once, with file and line."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_io.configuration import read_configuration
from fl_protocol.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A table."""

    lr: float = 0.1
    epochs: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError("epochs must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Another table."""

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError("share must be in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All kinds of fields."""

    fleet: str
    state: Path = Path("state")
    verbose: bool = False
    keys: tuple[str, ...] = ()
    held_out: Path | None = None
    count: int | None = None
    plan: Plan = field(default_factory=Plan)
    pace: Pace = field(default_factory=Pace)


def written(folder: Path, text: str) -> Path:
    """A configuration file of this text."""
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def faults(folder: Path, text: str) -> list[str]:
    """The faults of a configuration."""
    with pytest.raises(ConfigError) as caught:
        read_configuration(written(folder, text), Settings)
    return list(caught.value.faults)


def test_a_file_becomes_a_dataclass(tmp_path):
    """Integers serve as numbers, paths are relative to the file, what is not there has its default."""
    text = 'fleet = "f"\nstate = "s"\nkeys = ["a", "b"]\nheld_out = "/abs/x.npz"\ncount = 3\n[plan]\nlr = 1\n'
    settings = read_configuration(written(tmp_path, text), Settings)
    assert settings == Settings(
        fleet="f",
        state=tmp_path / "s",
        keys=("a", "b"),
        held_out=Path("/abs/x.npz"),
        count=3,
        plan=Plan(lr=1.0),
    )
    assert type(settings.plan.lr) is float


def test_all_faults_are_found_at_once_with_their_lines(tmp_path):
    """A person corrects a file once, not once per fault."""
    text = '\nflete = "f"\nverbose = 1\nkeys = ["a", 2]\ncount = 1.5\n\n[plan]\nlr = "fast"\nepoch = 3\n'
    assert faults(tmp_path, text) == [
        "fleet.toml:2: flete: unknown key, did you mean 'fleet'?",
        "fleet.toml:1: fleet: missing",
        "fleet.toml:3: verbose: must be true or false, not 1",
        "fleet.toml:4: keys: must be a list of texts",
        "fleet.toml:5: count: must be an integer, not 1.5",
        "fleet.toml:9: plan.epoch: unknown key, did you mean 'epochs'?",
        "fleet.toml:8: plan.lr: must be a number, not 'fast'",
    ]


def test_values_out_of_range_are_found_in_every_table(tmp_path):
    """A fault in one table does not hide that of another."""
    text = 'fleet = "f"\n[plan]\nepochs = 0\n[pace]\nshare = 2\n'
    assert faults(tmp_path, text) == [
        "fleet.toml:2: plan: epochs must be at least 1",
        "fleet.toml:4: pace: share must be in (0, 1]",
    ]


def test_an_inline_table_has_a_line_too(tmp_path):
    """The line on which it stands."""
    assert faults(tmp_path, 'fleet = "f"\nplan = { lr = true }\n') == [
        "fleet.toml:2: plan.lr: must be a number, not True"
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_are_finite(tmp_path, value):
    """TOML knows nan and inf; no setting of ours does."""
    assert faults(tmp_path, f'fleet = "f"\n[plan]\nlr = {value}\n')


def test_a_table_must_be_one(tmp_path):
    """And a text is no table."""
    assert faults(tmp_path, 'fleet = "f"\nplan = "fast"\n') == ["fleet.toml:2: plan: must be a table"]


def test_a_missing_file_and_a_broken_one_are_configuration_faults(tmp_path):
    """Both name the file; the broken one says where it breaks."""
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read_configuration(tmp_path / "absent.toml", Settings)
    assert "line 1" in faults(tmp_path, "fleet = = 1")[0]
    (tmp_path / "bytes.toml").write_bytes(b"fleet = '\xff'")
    with pytest.raises(ConfigError):
        read_configuration(tmp_path / "bytes.toml", Settings)


@given(st.text(max_size=200) | st.from_regex(r"([a-z]+ = [\[\]0-9\"']{0,300}\n){0,4}", fullmatch=True))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    """Whatever stands in the file: settings or a ConfigError."""
    path = tmp_path_factory.mktemp("toml") / "fleet.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        assert isinstance(read_configuration(path, Settings), Settings)


def test_endless_nesting_is_refused(tmp_path):
    """A parser's recursion limit is not our exception."""
    assert faults(tmp_path, "fleet = " + "[" * 100_000)
