"""The pytest plug-in: fixtures ``board``, ``pair``, ``site`` and ``pi_zero``, and a table of what
came of scenarios on boards.

    pytest --pyargs hil.boards --board process --board netns --hil-report hil-report.html

It is loaded wherever Lichen is installed, and costs nothing where its fixtures are not asked for.
"""

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hil.boards.board import Board
    from hil.boards.site import Site, SiteOptions
    from hil.boards.station import Station

_FIXTURES = {"board", "pair", "site"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a person may say about boards."""
    group = parser.getgroup("lichen hil")
    group.addoption(
        "--board",
        action="append",
        metavar="KIND",
        help="process (the default), netns, qemu, ssh, ssh:NAME, pi_zero, or all that can be had here;"
        " may stand more than once",
    )
    group.addoption("--boards-file", default="hil/boards.toml", metavar="FILE", help="the boards of ssh")
    group.addoption("--hil-artifact", metavar="DIR", help="your own training artifact, with --hil-samples")
    group.addoption("--hil-samples", metavar="FILE.npz", help="x and y, dealt out to devices")
    group.addoption("--hil-report", metavar="FILE.html", help="write the table of boards and scenarios")


def pytest_configure(config: pytest.Config) -> None:
    """Marks that other plug-ins read, where they are there; the name of the page is checked at once."""
    config.addinivalue_line("markers", "xdist_group(name): tests that one process runs, under pytest-xdist")
    config.addinivalue_line("markers", "timeout(seconds): the bound of a test, under pytest-timeout")
    report = config.getoption("--hil-report")
    if report and Path(report).suffix != ".html":
        raise pytest.UsageError(
            f"--hil-report {report}: name a page, FILE.html; the figures are written beside it, as FILE.json"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a board runs once on each that was named."""
    names = set(metafunc.fixturenames)
    if "pi_zero" in names:
        metafunc.parametrize("hil_station", ["pi_zero"], indirect=True, scope="session")
    elif "hil_station" in names and names & _FIXTURES:
        from fl_protocol.errors import ConfigError
        from hil.boards.station import expand

        config = metafunc.config
        try:
            kinds = expand(
                config.getoption("--board") or ["process"], Path(config.getoption("--boards-file"))
            )
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from None
        metafunc.parametrize("hil_station", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a board belong to one process; every wait in them has a bound of its own."""
    for item in items:
        if kind := _kind(item):
            item.add_marker(pytest.mark.xdist_group(kind))
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def hil_options(request: pytest.FixtureRequest) -> "SiteOptions":
    """What the fleet trains; a conftest.py may give another."""
    from hil.boards.site import SiteOptions

    artifact = request.config.getoption("--hil-artifact")
    samples = request.config.getoption("--hil-samples")
    if bool(artifact) != bool(samples):
        raise pytest.UsageError("--hil-artifact and --hil-samples belong together")
    if not artifact:
        return SiteOptions()
    return SiteOptions(artifact=Path(artifact).absolute(), samples=Path(samples).absolute())


@pytest.fixture(scope="session")
def hil_station(
    request: pytest.FixtureRequest, hil_options: "SiteOptions", tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Station]":
    """A board with its site, for all tests of the board."""
    from hil.boards.station import SEVERAL, open_station

    kind = request.param
    folder = tmp_path_factory.mktemp("".join(letter if letter.isalnum() else "-" for letter in kind))
    boards_file = Path(request.config.getoption("--boards-file"))
    say = _Speaker(request.config, kind)
    wanted = any(
        "pair" in getattr(item, "fixturenames", ()) and _kind(item) == kind for item in request.session.items
    )
    count = 2 if wanted and kind in SEVERAL else 1
    with open_station(kind, folder, hil_options, boards_file=boards_file, say=say, count=count) as station:
        yield station


@pytest.fixture
def board(hil_station: "Station") -> "Board":
    """A board; whatever came before, its link, disk and clock are good."""
    hil_station.settle()
    return hil_station.board


@pytest.fixture
def pair(hil_station: "Station") -> "Iterator[tuple[Board, Board]]":
    """Two boards of one site, for the first test that asks for them; the second is gone when it is over."""
    hil_station.settle()
    if not hil_station.others:
        pytest.skip("there is one board of this kind")
    yield hil_station.board, hil_station.others[0]
    hil_station.retire_others()


@pytest.fixture
def site(hil_station: "Station") -> "Site":
    """The site of the board: broker and coordinator serve."""
    hil_station.site.start()
    return hil_station.site


@pytest.fixture
def pi_zero(board: "Board") -> "Board":
    """A board with the memory and the one core that a Pi Zero 2 W has for its agent."""
    return board


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Name board and scenario in the report, with what they said where it failed."""
    report = yield
    kind = _kind(item)
    if kind:
        report.user_properties.append(("hil", [kind, _scenario(item)]))
        station: Any = getattr(item, "funcargs", {}).get("hil_station")
        if station is not None:
            report.user_properties.append(("hil_figures", [kind, station.measured()]))
        if report.failed and station is not None:
            for board in (station.board, *station.others):
                report.sections.append((f"board {board.device}", board.logs()[-8000:]))
            report.sections.append(("site", station.site.logs()))
    return report


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, and the page."""
    from hil.boards.report import figures, outcomes, table, write_json, write_page

    reports = [report for group in terminalreporter.stats.values() for report in group]
    told = [report for report in reports if isinstance(report, pytest.TestReport)]
    found, measured = outcomes(told), figures(told)
    if not found:
        return
    terminalreporter.section("boards")
    terminalreporter.write_line(table(found, measured))
    if path := config.getoption("--hil-report"):
        write_page(Path(path), found, measured)
        written = write_json(Path(path).with_suffix(".json"), found, measured)
        terminalreporter.write_line(f"written: {path}, {written}")


def _kind(item: pytest.Item) -> str:
    """The kind of board that a test runs on; empty for other tests."""
    kind = item.callspec.params.get("hil_station") if hasattr(item, "callspec") else None
    return kind if isinstance(kind, str) else ""


def _scenario(item: pytest.Item) -> str:
    """What the test is called, without its board."""
    name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
    return name if isinstance(name, str) else getattr(item, "originalname", item.name)


class _Speaker:
    """Progress, to whoever looks at the terminal, past pytest's capture."""

    def __init__(self, config: pytest.Config, kind: str) -> None:
        self._capture: Any = config.pluginmanager.getplugin("capturemanager")
        self._kind = kind

    def __call__(self, sentence: str) -> None:
        with self._capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n  [{self._kind}] {sentence}")
            sys.stderr.flush()
