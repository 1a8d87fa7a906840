"""The two commands: what they know, and how they refuse."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import edge_agent.command
from lichen import __version__
from lichen.command import lichen, main

WORDS = [
    "audit",
    "backup",
    "coordinator",
    "demo",
    "devices",
    "export",
    "fleet",
    "models",
    "new",
    "simulate",
    "status",
    "versions",
]
BIN = Path(sys.executable).parent


def words_of(command: click.Command, *before: str) -> Iterator[tuple[str, ...]]:
    """Every word of a command and its subcommands."""
    yield before
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from words_of(child, *before, name)


ALL_WORDS = list(words_of(lichen))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``lichen`` with these words; exit code, standard output, standard error."""

    def lichen_with(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lichen", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return lichen_with


def test_the_words_are_these():
    """Adding one is easy; losing one should be noticed."""
    assert lichen.list_commands(click.Context(lichen)) == WORDS
    assert set(ALL_WORDS) >= {
        ("coordinator", "run"),
        ("coordinator", "recover"),
        ("models", "verify"),
        ("models", "zoo"),
    }


@pytest.mark.parametrize("words", ALL_WORDS, ids=" ".join)
def test_every_word_explains_itself(words):
    """--help and -h end with 0 and say what the command does."""
    done = CliRunner().invoke(lichen, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Usage: lichen")
    command: click.Command | None = lichen
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    assert command.help
    assert done.output.splitlines()[2].strip()
    assert CliRunner().invoke(lichen, [*words, "-h"]).exit_code == 0


@pytest.mark.parametrize("words", [[], ["run"], ["status"], ["check"], ["samples"], ["samples", "add"]])
def test_every_word_of_the_agent_explains_itself(words, capsys):
    """--help ends with 0."""
    with pytest.raises(SystemExit) as ended:
        edge_agent.command.main([*words, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: lichen-agent")


def test_listings_have_json():
    """Whatever prints a table prints JSON too."""
    for name in set(WORDS) - {"coordinator", "fleet", "models", "new"}:
        command = lichen.get_command(click.Context(lichen), name)
        assert any("--json" in option.opts for option in command.params), name


def test_both_commands_are_installed(tmp_path):
    """As scripts beside the interpreter, and as modules."""
    scripts = {
        entry.name: entry.load()
        for entry in distribution("lichen").entry_points.select(group="console_scripts")
    }
    assert scripts == {"lichen": main, "lichen-agent": edge_agent.command.main}
    for command in ([BIN / "lichen"], [sys.executable, "-m", "lichen"]):
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60)
        assert told.stdout == f"lichen, version {__version__}\n"
    for command in ([BIN / "lichen-agent"], [sys.executable, "-m", "edge_agent"]):
        told = subprocess.run([*command, "status"], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (told.returncode, told.stderr) == (
            78,
            "error: cannot read agent.toml: No such file or directory\n"
            "  hint: is this the right path, and the right user?\n",
        )


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["coordinator"],
        ["coordinator", "fly"],
        ["coordinator", "run"],
        ["coordinator", "run", "fleet.toml", "--stop-after-versions", "0"],
        ["status", "--fast"],
        ["export"],
        ["backup"],
        ["models", "build"],
        ["models", "verify", "nowhere"],
        ["models", "zoo", "--out", "copy"],
        ["demo", "--devices", "0"],
        ["demo", "--runtime", "abacus"],
        ["demo", "--codec", "eden(bits=9)"],
        ["demo", "--partition", "halves"],
        ["demo", "--broker", "carrier-pigeon"],
        ["demo", "--out", __file__],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_wrong_usage_ends_with_2(run, monkeypatch, tmp_path, words):
    """Nothing is started, nothing is written; standard error says how the command is used."""
    monkeypatch.chdir(tmp_path)
    code, printed, complained = run(*words)
    assert (code, printed) == (2, "")
    assert complained.startswith("Usage: lichen")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_value_comes_with_what_to_write_instead(run):
    """The hint of the part that refused it is shown."""
    _, _, complained = run("demo", "--codec", "edan")
    assert "'--codec': edan: no such codec; there are eden, float16, float32, int8" in complained
    assert "hint: did you mean eden?" in complained


FLEET = """fleet = "garden"
artifact = "artifact"
brokr = "auto"

[buffer]
size = "four"
min_updates = 0

[plan]
lr = 1e9
epochs = 0

[http]
port = 99999
"""
FLEET_FAULTS = [
    "fleet.toml:3: brokr: unknown key, did you mean 'broker'?",
    "fleet.toml:1: state: missing",
    "fleet.toml:6: buffer.size: must be an integer, not 'four'",
    "fleet.toml:9: plan: epochs must be from 1 to 10000; lr must be from 0 to 1e6",
    "fleet.toml:13: http: port must be from 0 to 65535",
]
AGENT = """device = "pi-07"
fleet = "garden"
state = "state"
trusted_key = ["ed25519:00"]

[gates]
min_samples = -1

[worker]
nice = "very"
"""
AGENT_FAULTS = [
    "agent.toml:4: trusted_key: unknown key, did you mean 'trusted_keys'?",
    "agent.toml:1: broker: missing",
    "agent.toml:6: gates: min_samples must not be negative",
    "agent.toml:10: worker.nice: must be an integer, not 'very'",
]


@pytest.mark.parametrize("words", [["coordinator", "run"], ["coordinator", "recover"]])
def test_all_faults_of_a_fleet_file_are_told_at_once(run, tmp_path, words):
    """Each with file, line and key; exit code 78; nothing has been made."""
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    code, printed, complained = run(*words, path)
    assert (code, printed) == (78, "")
    head, *faults = complained.splitlines()
    assert head == f"error: {path} has {len(FLEET_FAULTS)} faults:"
    assert sorted(fault.strip() for fault in faults) == sorted(FLEET_FAULTS)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("words", [["run"], ["status"], ["check"], ["samples", "add", "some.npz"]])
def test_all_faults_of_an_agent_file_are_told_at_once(tmp_path, capsys, words):
    """Each with file, line and key; exit code 78; nothing has been made."""
    path = tmp_path / "agent.toml"
    path.write_text(AGENT)
    assert edge_agent.command.main([*words, "--config", str(path)]) == 78
    said = capsys.readouterr()
    head, *faults = said.err.splitlines()
    assert (said.out, head) == ("", f"error: {path} has {len(AGENT_FAULTS)} faults:")
    assert sorted(fault.strip() for fault in faults) == sorted(AGENT_FAULTS)
    assert list(tmp_path.iterdir()) == [path]


def test_a_fleet_file_that_is_no_toml_says_where(run, tmp_path):
    """Exit code 78 with the parser's line."""
    path = tmp_path / "fleet.toml"
    path.write_text('fleet = "garden"\nstate = \n')
    code, _, complained = run("coordinator", "run", path)
    assert code == 78
    assert "not a TOML file" in complained
    assert "line 2" in complained


def test_a_command_without_its_coordinator_says_what_to_do(run, monkeypatch, tmp_path):
    """No fleet.toml here: 78; a folder where none has run: 1. Each with a hint."""
    monkeypatch.chdir(tmp_path)
    for words in (["status"], ["devices"], ["versions"], ["audit"], ["backup", "--out", "b"]):
        code, printed, complained = run(*words)
        assert (code, printed) == (78, "")
        assert complained.startswith("error: which coordinator?\n  hint: ")
    code, printed, complained = run("status", tmp_path)
    assert (code, printed) == (1, "")
    assert "hint: " in complained


def shadowed(folder: Path, *words: str, module: bool) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, as a script or with that folder first on Python's path."""
    command = [sys.executable, "-m", "lichen"] if module else [str(BIN / "lichen")]
    return subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "words", [("models", "verify", "--help"), ("demo", "--help"), ("--help",)], ids=" ".join
)
@pytest.mark.parametrize("name", ["models/__init__.py", "models.py"])
def test_a_package_of_the_users_that_hides_ours_is_named(tmp_path, name, words):
    """Whichever command it breaks, through whichever import: exit code 1, the place, what to do."""
    culprit = tmp_path / name
    culprit.parent.mkdir(exist_ok=True)
    culprit.write_text("answer = 42\n")
    done = shadowed(tmp_path, *words, module=True)
    place = culprit.parent if culprit.name == "__init__.py" else culprit
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: something of yours hides Lichen's package 'models': {place}\n"
        "  hint: rename it, or start the command from another folder\n"
    )


@pytest.mark.parametrize("module", [True, False])
def test_a_folder_named_models_that_is_no_package_breaks_nothing(tmp_path, module):
    """Most people's is one of files; and the script does not look into the current folder at all."""
    (tmp_path / "models").mkdir()
    if not module:
        (tmp_path / "models" / "__init__.py").touch()
    done = shadowed(tmp_path, "models", "--help", module=module)
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("onnx", ["models", "build", __file__, "--loss", "softmax_cross_entropy"]),
        ("rich", ["status"]),
        ("click", ["status"]),
    ],
    ids=str,
)
def test_an_extra_that_is_missing_is_named_with_how_to_install_it(tmp_path, missing, words):
    """A package that cannot be found is no stack trace."""
    code = f"import sys; sys.modules[{missing!r}] = None; from lichen.command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *(["--out", tmp_path / "out"] if "build" in words else [])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "hint: pip install 'lichen[" in done.stderr
