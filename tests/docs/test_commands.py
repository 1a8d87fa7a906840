"""Every command in the documents is one that the programs understand."""

import re
import shlex
from pathlib import Path

import click
import pytest

from edge_agent.command import _parser
from lichen.command import lichen


@pytest.fixture
def understood(monkeypatch, capsys):
    """Why the program's own parser refuses a command; empty if it does not."""
    # Whether a file that a command names is there is not the question.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))

    def refusal(command: str, *, named: bool = False) -> str:
        program, *words = shlex.split(command, comments=True)
        try:
            if program == "lichen-agent":
                _parser().parse_args(words)
            else:
                parse(lichen, words, named=named)
        except click.ClickException as error:
            return error.format_message()
        except click.exceptions.Exit as ended:  # --help, --version
            return "" if ended.exit_code == 0 else f"exit code {ended.exit_code}"
        except SystemExit as ended:
            return capsys.readouterr().err if ended.code else ""
        return ""

    return refusal


def parse(command: click.Command, words: list[str], *, named: bool) -> None:
    """Read words as ``lichen`` would, down to the command that they call, and do not call it.

    One that is only ``named`` needs no arguments.
    """
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        if child is None:
            raise click.UsageError(f"{command.name} has no command {words[0]!r}")
        command, words = child, words[1:]
    if words or not named:
        command.make_context(command.name, list(words))


def test_the_test_itself_finds_faults(understood):
    """A wrong word, option, value or number of arguments would be seen."""
    for wrong in (
        "lichen fly",
        "lichen coordinator run",
        "lichen export --fast",
        "lichen demo --devices many",
        "lichen-agent fly",
        "lichen-agent samples add",
    ):
        assert understood(wrong), wrong
    for right in (
        "lichen demo --help",
        "lichen status",
        "lichen-agent run --config agent.toml  # a word on it",
    ):
        assert understood(right) == "", right


def test_every_command_of_the_documents_is_understood(documents, understood):
    """In blocks of code and in the text."""
    programs = ("lichen", "lichen-agent")
    typed = [(document, command, False) for document in documents for command in document.commands(*programs)]
    named = [(document, command, True) for document in documents for command in document.mentions(*programs)]
    assert len(typed) >= 10
    faults = [
        f"{document.name}: {command}: {fault}"
        for document, command, only_named in typed + named
        if (fault := understood(command, named=only_named))
    ]
    assert faults == []


def test_every_make_target_of_the_documents_is_there(documents, understood):
    """And the options that are handed on are the demo's."""
    root = documents[0].path.parent
    targets = set(re.findall(r"^([a-z0-9-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    lines = [line for document in documents for line in document.commands("make") + document.mentions("make")]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert {word for _, *words in commands for word in words if "=" not in word} <= targets
    for command in commands:
        handed = [word.removeprefix("ARGS=") for word in command if word.startswith("ARGS=")]
        if "demo" in command and handed:
            assert understood(f"lichen demo {handed[0]}") == "", handed
