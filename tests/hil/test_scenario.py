"""Scenario files: what comes along runs, what is wrong is said with the nearest right word; the command."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from broker_coordinator.books.audit import audit
from fl_protocol.errors import ConfigError
from hil.simulate.command import simulate
from hil.simulate.page import write_comparison
from hil.simulate.scenario import READY, SCENARIOS, read_scenario, run_scenario
from models.zoo.command import DATASETS

SMALL = ["devices=12", "versions=2", "hidden=8", "per_device=30", "fleet.buffer.size=4", 'runtimes=["numpy"]']


@pytest.mark.parametrize("name", sorted(set(READY) - set(DATASETS)))
def test_scenarios_that_come_along_run(name):
    """Each of them, made small."""
    result = run_scenario(read_scenario(name, SMALL))
    assert result.name == name
    assert result.versions == 2
    assert result.accuracy is not None
    assert result.groups_of == "class"
    assert len(result.by_group) == 10


def fetched(name):
    """Skip where a data set was not fetched."""
    if not DATASETS[name].path.exists():
        pytest.skip(f"the data set {name} is not on this machine")


def test_motion_tells_whom_the_model_serves_worst():
    """Each person is a device, and is judged on what they did later; the worst off is in every version."""
    fetched("motion")
    result = run_scenario(read_scenario("motion", ["versions=3", "fleet.plan.epochs=2"]))
    assert (result.groups_of, len(result.by_group)) == ("user", 10)
    assert 0.3 < result.accuracy < 1  # seven classes: chance is a seventh
    assert result.worst_group == result.history[-1].worst_group < result.accuracy


def test_shuttle_learns_to_rebuild_normal_rows():
    """There is no accuracy: the loss of the held-out rows falls."""
    fetched("shuttle")
    result = run_scenario(read_scenario("shuttle", ["versions=10"]))
    assert result.accuracy is None
    assert result.by_group == {}
    assert result.loss == result.history[-1].loss < 0.4 * result.history[0].loss


def test_whose_rows_they_are_may_be_told_with_the_evaluation(tmp_path):
    """A third value of one's own function; as many as rows, or it is an error that says so."""
    (tmp_path / "told_users.py").write_text(
        "import numpy as np\nfrom models.zoo import digits\n"
        "def evaluation():\n"
        "    kept = digits.split()[1]\n"
        "    return kept.x, kept.y, np.where(np.arange(len(kept.x)) < 100, 'ann', 'bob')\n"
        "def short():\n"
        "    return *evaluation()[:2], ['ann']\n"
    )
    path = tmp_path / "mine.toml"
    path.write_text('evaluation = "told_users:evaluation"\n')
    result = run_scenario(read_scenario(str(path), SMALL))
    assert (result.groups_of, set(result.by_group)) == ("user", {"ann", "bob"})
    with pytest.raises(ConfigError, match="rows to evaluate with, and 1 users"):
        run_scenario(read_scenario(str(path), [*SMALL, "evaluation=told_users:short"]))


def test_changes_take_the_place_of_what_is_written(tmp_path):
    """By TOML's own values, or as a text; in tables that were not there too."""
    path = tmp_path / "mine.toml"
    path.write_text("devices = 5\n[fleet.buffer]\nsize = 9\n")
    written = read_scenario(
        str(path), ["devices=7", "partition=dirichlet:1", "fleet.buffer.size=3", "attack=noise"]
    )
    assert written.keys.devices == 7
    assert written.keys.partition == "dirichlet:1"
    assert written.tables["fleet"]["buffer"]["size"] == 3
    assert written.tables["attack"] == {"kind": "noise"}
    assert written.name == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devces = 5", "mine.toml:1: devces: unknown key, did you mean 'devices'?"),
        ("devices = 0", "devices must be from 1"),
        ('data = "digit"', "did you mean 'digits'?"),
        ('[availability]\nkind = "comuter"', "did you mean 'commuter'?"),
        ("[fleet.bufer]\nsize = 3", "mine.toml:1: fleet.bufer: unknown key, did you mean 'buffer'?"),
        ("hidden = 8\n[fleet.plan]\nlr = 0.1\nepoch = 3", "mine.toml:4: fleet.plan.epoch: unknown key"),
        ("hidden = 8\n\n[fleet.buffer]\nsize = 0", "mine.toml:3: fleet.buffer: size"),
        ('hidden = 8\n[availability]\nkind = "lognormal"\non = 3', "mine.toml:4: availability.on: unknown"),
        ('hidden = 8\n[attack]\nkind = "noise"\nshare = "a"', "mine.toml:4: attack.share: must be"),
        ("hidden = 8\n[classes.pi]\nstep = 1", "mine.toml:3: classes.pi.step: unknown key"),
        ("[classes.fast]\nstep_s = -1", "step_s"),
        ('partition = "slow:8,9"', "slow devices and fast"),
    ],
)
def test_faults_are_told(tmp_path, text, said):
    """With the file, and what would do."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        run_scenario(read_scenario(str(path), [] if "devices" in text else ["devices=4"]))
    assert said in str(caught.value)


def test_an_unknown_name_is_told_with_the_nearest():
    """Those that come along are listed where nothing is near."""
    with pytest.raises(ConfigError, match="heavy-tail"):
        read_scenario("heavytail")


def test_ones_own_devices_and_evaluation(tmp_path):
    """Functions of a module beside the file."""
    (tmp_path / "my_fleet_data.py").write_text(
        "from models.zoo import digits\n"
        "def devices(n, seed):\n"
        "    training, _ = digits.split()\n"
        "    for device in range(n):\n"
        "        yield training.x[device::n], training.y[device::n]\n"
        "def evaluation():\n"
        "    kept = digits.split()[1]\n"
        "    return kept.x[:100], kept.y[:100]\n"
    )
    path = tmp_path / "mine.toml"
    path.write_text(
        'hidden = 8\ndevices = 6\nversions = 2\nown = "my_fleet_data:devices"\n'
        'evaluation = "my_fleet_data:evaluation"\nruntimes = ["numpy"]\n[fleet.buffer]\nsize = 3\n'
    )
    result = run_scenario(read_scenario(str(path)))
    assert result.accuracy_source == "coordinator"
    assert result.accuracy * 100 == pytest.approx(round(result.accuracy * 100))


def test_a_rule_beside_the_scenario_is_found_from_anywhere(tmp_path, monkeypatch):
    """The coordinator loads it by its name, whatever folder the command is run in."""
    (tmp_path / "my_garden_rules.py").write_text(
        "from broker_coordinator.aggregation.aggregator import Mean\nclass MyMean(Mean): pass\n"
    )
    path = tmp_path / "mine.toml"
    path.write_text(
        'hidden = 8\ndevices = 6\nversions = 2\nruntimes = ["numpy"]\n'
        '[fleet.buffer]\nsize = 3\n[fleet.aggregator]\nkind = "my_garden_rules:MyMean"\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_scenario(read_scenario(str(path))).versions == 2


def test_the_command_s_table_is_whole_in_eighty_columns(monkeypatch):
    """Also where no terminal tells how wide it is."""
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["heavy-tail", "--devices", "12"]
    for change in SMALL[1:]:
        arguments += ["--set", change]
    ran = CliRunner().invoke(simulate, arguments)
    assert ran.exit_code == 0, ran.output
    assert "accuracy" in ran.stdout
    assert "…" not in ran.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "artifakt"', "no model 'artifakt', and no artifact is in .*/artifakt"),
        ('data = "strange.npz"', "strange.npz holds no x"),
        ('data = "short.npz"', "not as many rows of each"),
        ('data = "junk.npz"', "junk.npz: "),
        ('trainer = "broken_module:Trainer"', "'broken_module:Trainer' cannot be loaded: SyntaxError"),
        ('evaluation = "my_measure:fails"', "my_measure:fails gives no x and y .*: RuntimeError: oh"),
        ("fleet = 3", "fleet must be a table"),
        ("classes = 3", "classes must be a table"),
        ("[fleet]\nupdate = 3", "fleet: update must be a table"),
    ],
)
def test_what_a_scenario_gets_wrong_is_told(tmp_path, text, said):
    """Files, modules and tables of its owner's: each an error that names it, and no traceback."""
    np.savez(tmp_path / "strange.npz", q=np.arange(3))
    np.savez(tmp_path / "short.npz", x=np.zeros((50, 64), np.float32), y=np.zeros(49, np.int32))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "broken_module.py").write_text("def f(:\n")
    (tmp_path / "my_measure.py").write_text("def fails():\n    raise RuntimeError('oh')\n")
    path = tmp_path / "mine.toml"
    path.write_text(f'devices = 2\nversions = 1\nruntimes = ["numpy"]\n{text}\n')
    with pytest.raises(ConfigError, match=said):
        run_scenario(read_scenario(str(path)))


def test_the_command_writes_pages_and_figures(tmp_path):
    """One page for each run, one that compares, and a state folder that can be audited."""
    arguments = [
        "iid",
        "attackers",
        "--devices",
        "12",
        "--seed",
        "3",
        "--json",
        "--out",
        str(tmp_path / "out"),
    ]
    for change in SMALL[1:]:
        arguments += ["--set", change]
    ran = CliRunner().invoke(simulate, arguments)
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)
    assert [run["name"] for run in figures] == ["iid", "attackers"]
    assert [run["seed"] for run in figures] == [3, 3]
    assert figures[0]["state_hash"] != figures[1]["state_hash"]
    out = tmp_path / "out"
    for page in ("iid.html", "attackers.html", "comparison.html"):
        text = (out / page).read_text()
        assert "<svg" in text
        assert "http" not in text.replace("http://www.w3.org", "")
    assert json.loads((out / "iid.json").read_text())["state_hash"] == figures[0]["state_hash"]
    assert audit(out / "iid-coordinator").balanced


def test_a_state_folder_lies_where_the_command_was_typed(tmp_path, monkeypatch):
    """Not beside the scenario's file, which may be one that came along, in the installed package."""
    monkeypatch.chdir(tmp_path)
    arguments = ["iid", "--devices", "12", "--out", "out"]
    for change in SMALL[1:]:
        arguments += ["--set", change]
    ran = CliRunner().invoke(simulate, arguments)
    assert ran.exit_code == 0, ran.output
    assert audit(tmp_path / "out" / "iid-coordinator").balanced
    assert not (SCENARIOS / "out").exists()


def test_two_scenarios_of_one_name_do_not_become_one_page(tmp_path):
    """The second would take the place of the first."""
    files = [tmp_path / folder / "garden.toml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("devices = 5\nversions = 1\n")
    ran = CliRunner().invoke(simulate, [*map(str, files), "--out", str(tmp_path / "out")])
    assert isinstance(ran.exception, ConfigError)
    assert "garden" in str(ran.exception)
    assert not (tmp_path / "out").exists()


def test_a_comparison_leaves_out_what_no_run_tells(tmp_path):
    """A target that none had is no column; runs whose times lie apart are drawn over ratios of time."""
    runs = [run_scenario(read_scenario("iid", SMALL)), run_scenario(read_scenario("dirichlet", SMALL))]
    late = tuple(replace(row, virtual_s=100 * row.virtual_s) for row in runs[1].history)
    near = write_comparison(tmp_path, runs).read_text()
    assert "<th>worst class</th>" in near
    assert "Accuracy on the worst class over time" in near
    assert "target at" not in near
    apart = write_comparison(tmp_path, [runs[0], replace(runs[1], history=late)]).read_text()
    assert apart != near
    with_target = replace(runs[0], target=0.1, reached=runs[0].history[0])
    assert "<th>target at</th>" in write_comparison(tmp_path, [with_target, runs[1]]).read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[class.phone]", "no table 'class'.*did you mean .classes"),
        ("[buffer]\nsize = 3", "no table 'buffer'.*fleet.buffer"),
        ("[classes.fone]", "device class is called 'fone', did you mean 'phone'"),
    ],
)
def test_a_table_misspelt_is_not_taken_for_something_else(tmp_path, text, said):
    """Neither passed over nor run as another kind of device."""
    path = tmp_path / "mine.toml"
    path.write_text(f"devices = 2\nversions = 1\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        run_scenario(read_scenario(str(path)))
    told = " ".join((str(caught.value), *caught.value.faults, caught.value.hint or ""))
    assert re.search(said, told, re.DOTALL)
