"""Aggregators that users write: by ``module:Class``, from a folder of theirs, in a whole coordinator."""

import hashlib
import pathlib
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.aggregation.aggregator_registry import aggregator_for
from broker_coordinator.books.audit import audit
from broker_coordinator.configuration import AggregatorTable, BufferTable, SelectionTable
from broker_coordinator.decide import MAX_UPLOADS_PER_DEVICE
from fl_protocol.errors import ConfigError

LOSS_WEIGHTED = """
    import numpy as np

    class LossWeightedMean:
        holds_updates = False

        def weigh(self, update, context):
            return update.num_examples * update.metrics["before.loss"]

        def init(self, size):
            return {"total": np.zeros(size, np.float32), "weight": np.float32(0)}

        def accumulate(self, state, start, values, weight):
            state["total"][start : start + len(values)] += weight * values
            if start == 0:
                state["weight"] += weight

        def finalize(self, state):
            return state["total"] / state["weight"]
"""
BROKEN = {
    "nan": ("finalize", 'return state["total"] * np.float32("nan")', "not finite"),
    "shape": ("finalize", 'return state["total"][1:]', "not float32"),
    "dtype": ("finalize", 'return state["total"].astype(np.float64)', "not float32"),
    "nothing": ("finalize", "return None", "NoneType"),
    "raises": ("finalize", "raise RuntimeError('oh')", "RuntimeError: oh"),
    "midway": ("accumulate", "raise IndexError('oh')", "IndexError: oh"),
    "keeps": ("accumulate", 'state.setdefault("kept", []).append(values)', "keeps the piece"),
    "init": ("init", "raise ValueError('oh')", "ValueError: oh"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``folder(source)`` writes the user's module, into the directory where they work."""
    here = tmp_path / "mine"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source):
        (here / "my_rules.py").write_text(textwrap.dedent(source))
        sys.modules.pop("my_rules", None)

    yield write
    sys.modules.pop("my_rules", None)


def broken(fault):
    """The same class with one line of a method in place of it all."""
    method, line, _ = BROKEN[fault]
    head, _, rest = textwrap.dedent(LOSS_WEIGHTED).partition(f"    def {method}(")
    signature, _, body = rest.partition("\n")
    _, blank, after = body.partition("\n\n")
    return f"{head}    def {method}({signature}\n        {line}\n{blank}{after}"


def losses(*values):
    """Metrics as headers carry them."""
    return [{"before.loss": value} for value in values]


def send(fleet, devices, metrics):
    """One update of each device, with its metrics; values are the place in the list."""
    ids = []
    for place, (device, said) in enumerate(zip(devices, metrics, strict=True)):
        ids += fleet.contribute(device, value=float(place), metrics=said)
    return ids


RULE = AggregatorTable(kind="my_rules:LossWeightedMean")


def test_the_rule_of_the_readme_weighs_by_loss(fleet_of, folder):
    """Weighed once, and journalled; versions replay; without the class the audit says what it misses."""
    folder(LOSS_WEIGHTED)
    fleet = fleet_of(aggregator=RULE).start()
    devices = [fleet.device(f"d{number}") for number in range(2)]
    before = fleet.coordinator.weights.copy()
    ids = send(fleet, devices, losses(1.0, 3.0))
    assert [device.last(known).state for device, known in zip(devices, ids, strict=True)] == ["done"] * 2
    assert fleet.coordinator.version.number == 1
    assert fleet.coordinator.weights - before == pytest.approx(np.full_like(before, 0.75), abs=1e-5)
    assert fleet.books().versions_ok == 1
    folder("")
    report = audit(fleet.folder)
    assert report.versions_ok == 0
    assert "my_rules:LossWeightedMean" in report.faults[0]


def test_an_update_without_the_metric_is_refused(fleet_of, folder):
    """That is the update's fault where others report it, and they go on."""
    folder(LOSS_WEIGHTED)
    fleet = fleet_of(aggregator=RULE).start()
    devices = [fleet.device(f"d{number}") for number in range(3)]
    ids = send(fleet, devices, [*losses(1.0), {}, *losses(1.0)])
    assert devices[1].last(ids[1]).state == "refused"
    assert fleet.coordinator.version.number == 1
    assert fleet.coordinator.figures().aggregator_fault == ""


def test_the_first_update_without_the_metric_holds_up_nobody(fleet_of, folder):
    """Until somebody reports it, it may be misspelt: the update waits; once others do, it is refused."""
    folder(LOSS_WEIGHTED)
    fleet = fleet_of(aggregator=RULE).start()
    devices = [fleet.device(f"d{number}") for number in range(3)]
    early = devices[0].make(fleet.layout, metrics={})
    devices[0].begin(*early)
    fleet.settle()
    assert devices[0].words(early[0]) == ["later"]
    send(fleet, devices[1:], losses(1.0, 1.0))
    assert fleet.coordinator.version.number == 1
    devices[0].begin(*early)
    fleet.settle()
    assert devices[0].words(early[0]) == ["later", "refused"]
    assert fleet.coordinator.figures().aggregator_fault == ""


@pytest.mark.parametrize("weight", ["{}", "math.log({}) + 9", "{} and float('nan')"])
def test_a_claim_below_zero_is_its_device_s_fault_alone(fleet_of, folder, weight):
    """Its update is refused: the weight is negative, no number or an error, and the rule is not faulty."""
    source = "import math\n" + textwrap.dedent(LOSS_WEIGHTED)
    asked = 'update.metrics["before.loss"]'
    folder(source.replace(f"update.num_examples * {asked}", weight.format(asked)))
    fleet = fleet_of(aggregator=RULE).start()
    devices = [fleet.device(f"d{number}") for number in range(3)]
    update = devices[0].make(fleet.layout, metrics={"before.loss": -3.0})
    devices[0].begin(*update)
    fleet.settle()
    assert devices[0].words(update[0]) == ["refused"]
    assert fleet.coordinator.figures().aggregator_fault == ""


@pytest.mark.parametrize("claim", [{"before.loss": 0.0}, {"before.loss": 3e38}, {"before.loss": 2.0**52}])
def test_a_claim_that_a_rule_stumbles_over_holds_up_nobody(fleet_of, folder, claim):
    """The rule divides by 0, overflows, or has no memory: a burst with such an update is one commit, the
    others count, and it stays with its device; a rule that weighed others keeps its good name."""
    asked = 'update.metrics["before.loss"]'
    weight = f"len(bytes(int({asked}))) + math.exp(1 / {asked}) * {asked} ** 9"
    source = "import math\n" + textwrap.dedent(LOSS_WEIGHTED)
    folder(source.replace(f"update.num_examples * {asked}", weight))
    fleet = fleet_of(aggregator=RULE, buffer=BufferTable(size=50)).start()
    devices = [fleet.device(f"d{number}") for number in range(6)]
    send(fleet, devices[:1], losses(1.0))
    commits, transaction = [], fleet.store.transaction
    fleet.store.transaction = lambda name: commits.append(name) or transaction(name)
    ids = []
    for device, said in zip(devices[1:], [*losses(1.0, 2.0), claim, *losses(1.0, 1.0)], strict=True):
        update = device.make(fleet.layout, metrics=said)
        device.begin(*update)
        ids.append(update[0])
    fleet.settle()
    last = [device.last(known) for device, known in zip(devices[1:], ids, strict=True)]
    assert [receipt.state for receipt in last] == ["done", "done", "later", "done", "done"]
    assert (last[2].reason, last[2].wait_s) == ("unweighed", 600.0)
    assert commits.count("coordinator.ingest") == 1
    figures = fleet.coordinator.figures()
    assert (figures.rejected, figures.aggregator_fault) == ({"unweighed": 1}, "")
    assert audit(fleet.folder).balanced


def test_what_could_not_be_weighed_comes_back_within_its_round(fleet_of, folder):
    """The rule's scratch space was full for a moment: asked a third of the round later, it is counted."""
    tried = "os.stat('room') and update.num_examples *"
    source = "import os\n" + textwrap.dedent(LOSS_WEIGHTED)
    folder(source.replace("update.num_examples *", tried))
    fleet = fleet_of(
        aggregator=RULE,
        buffer=BufferTable(kind="rounds", size=1, over_selection=1.0, flush_after_s=90.0),
        selection=SelectionTable(kind="random"),
    ).start()
    device = fleet.device("d1")
    device.birth()
    fleet.settle(30)
    update = device.make(fleet.layout, metrics={"before.loss": 1.0})
    device.begin(*update)
    fleet.settle()
    receipt = device.last(update[0])
    assert (receipt.state, receipt.reason) == ("later", "unweighed")
    assert 1.5 * receipt.wait_s < 60
    pathlib.Path("room").touch()
    fleet.settle(1.5 * receipt.wait_s)
    device.begin(*update)
    fleet.settle()
    assert device.last(update[0]).state == "done"
    assert fleet.coordinator.version.number == 1


def test_a_large_update_that_a_rule_stumbles_over_takes_no_place(fleet_of, folder, large_artifact):
    """It stays with its device: a chunk that comes again refuses nothing, and others of it find room."""
    folder(LOSS_WEIGHTED.replace('* update.metrics["before.loss"]', '/ update.metrics["before.loss"]'))
    fleet = fleet_of(aggregator=RULE, artifact=large_artifact, buffer=BufferTable(size=50)).start()
    device = fleet.device("d1")

    def upload(loss):
        update_id, header, payload = device.make(fleet.layout, metrics={"before.loss": loss})
        device.begin(update_id, header)
        fleet.settle()
        chunks = [(at, payload[at : at + (1 << 16)]) for at in range(0, len(payload), 1 << 16)]
        for at, chunk in [*chunks, chunks[-1]]:
            device.say(device.topics.chunk("d1", update_id, at), chunk)
        fleet.settle()
        return device.last(update_id)

    for _ in range(MAX_UPLOADS_PER_DEVICE + 1):
        receipt = upload(0.0)
        assert (receipt.state, receipt.reason) == ("later", "unweighed")
    assert upload(1.0).state == "done"
    assert not list((fleet.folder / "parts").iterdir())
    assert fleet.books().versions_ok == 0


def test_a_rule_that_fails_on_most_devices_is_called_faulty(fleet_of, folder, caplog):
    """One device alone cannot give it a bad name, nor one alone a good one: the fault stands, is said once,
    and goes when the rule weighs most of them again."""
    folder(LOSS_WEIGHTED.replace('* update.metrics["before.loss"]', '/ update.metrics["before.loss"]'))
    fleet = fleet_of(aggregator=RULE, buffer=BufferTable(size=50)).start()
    devices = {name: fleet.device(name) for name in ("d0", "d1", "d2", "d3")}

    def faults(**said):
        found = []
        for name, loss in said.items():
            send(fleet, [devices[name]], losses(loss))
            found.append(fleet.coordinator.figures().aggregator_fault)
        return found

    found = faults(d0=1.0, d1=0.0, d2=0.0, d3=0.0)
    assert [bool(fault) for fault in found] == [False, False, True, True]
    assert "'my_rules:LossWeightedMean' failed in weigh: ZeroDivisionError" in found[3]
    assert "'d3', whose before.loss is 0.0" in found[3]
    assert "it fails for 3 of the 4 devices heard last" in found[3]
    assert fleet.coordinator.figures().unweighed_share == 0.75
    found = faults(d1=1.0, d2=1.0, d3=1.0)
    assert [bool(fault) for fault in found] == [True, False, False]
    assert fleet.coordinator.figures().unweighed_share == 0.0
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1
    assert [record.message for record in caplog.records if "well again" in record.message] == [
        "the aggregator is well again: it fails for 1 of the 4 devices heard last"
    ]


def test_a_failure_of_devices_that_are_gone_is_forgotten(fleet_of, folder):
    """What they sent is no longer what the rule does: the others have had their turns since."""
    folder(LOSS_WEIGHTED.replace('* update.metrics["before.loss"]', '/ update.metrics["before.loss"]'))
    fleet = fleet_of(aggregator=RULE, buffer=BufferTable(size=1)).start()
    devices = [fleet.device(f"d{number}") for number in range(3)]
    send(fleet, devices, losses(0.0, 0.0, 1.0))
    assert fleet.coordinator.figures().aggregator_fault
    for _ in range(14):
        send(fleet, devices[2:], losses(1.0))
    assert fleet.coordinator.figures().aggregator_fault == ""


def test_a_refused_update_teaches_no_metric(fleet_of, folder):
    """The rule misspells one; a hostile device sends the misspelt name in an update that does not decode.
    Honest updates wait all the same: to refuse them would be to lose them."""
    folder(LOSS_WEIGHTED.replace("before.loss", "before.los"))
    fleet = fleet_of(aggregator=RULE).start()
    hostile, honest = fleet.device("d0"), fleet.device("d1")
    update_id, header, payload = hostile.make(fleet.layout, metrics={"before.los": 1.0})
    junk = b"\xff" * len(payload)
    hostile.begin(update_id, replace(header, sha256=hashlib.sha256(junk).digest()), junk)
    fleet.settle()
    assert hostile.words(update_id) == ["refused"]
    update = honest.make(fleet.layout, metrics={"before.loss": 1.0})
    honest.begin(*update)
    fleet.settle()
    assert honest.words(update[0]) == ["later"]


@pytest.mark.parametrize("fault", BROKEN)
def test_a_rule_s_fault_stops_the_version_and_loses_no_update(fleet_of, folder, fault):
    """Its name is in the status; what is accepted waits; mended and started again, the version closes."""
    folder(broken(fault))
    fleet = fleet_of(aggregator=RULE).start()
    devices = [fleet.device(f"d{number}") for number in range(3)]
    ids = send(fleet, devices, losses(1.0, 3.0, 1.0))
    figures = fleet.coordinator.figures()
    assert "my_rules:LossWeightedMean" in figures.aggregator_fault
    assert BROKEN[fault][2] in figures.aggregator_fault
    assert (figures.version, figures.quarantined) == (0, 0)
    assert [device.last(known).state for device, known in zip(devices, ids, strict=True)] == ["done"] * 3
    assert fleet.store.counts().waiting == 3
    fleet.crash()
    folder(LOSS_WEIGHTED)
    fleet.start()
    assert fleet.coordinator.version.number == 1
    assert fleet.coordinator.figures().aggregator_fault == ""
    assert (fleet.books().folded, fleet.books().quarantined) == (3, 0)


@pytest.mark.parametrize(
    "line",
    [
        "return float('nan')",
        "return -1.0",
        "raise ZeroDivisionError('oh')",
        "return {}['oh']",
        "return update.metrics['before.los']",
    ],
)
def test_a_rule_that_cannot_weigh_leaves_updates_with_their_devices(fleet_of, folder, line):
    """Nothing is accepted or refused: no receipt that would end an update. Mended, it is taken."""
    folder(
        textwrap.dedent(LOSS_WEIGHTED).replace(
            'return update.num_examples * update.metrics["before.loss"]', line
        )
    )
    fleet = fleet_of(aggregator=RULE).start()
    device = fleet.device("d0")
    update = device.make(fleet.layout, metrics={"before.loss": 1.0})
    device.begin(*update)
    fleet.settle()
    assert device.words(update[0]) == ["later"]
    assert "weigh" in fleet.coordinator.figures().aggregator_fault
    assert "wait with their devices" in fleet.coordinator.figures().aggregator_fault
    fleet.crash()
    folder(LOSS_WEIGHTED)
    fleet.start()
    device.begin(*update)
    fleet.settle()
    assert device.words(update[0])[-1] == "done"
    assert fleet.coordinator.figures().aggregator_fault == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "has no attribute"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("class LossWeightedMean: pass", "no holds_updates"),
        ("class LossWeightedMean: holds_updates = True", "has no weigh, combine"),
        (
            "class LossWeightedMean:\n  holds_updates = False\n  def __init__(self): 1 / 0",
            "ZeroDivisionError",
        ),
    ],
)
def test_a_class_that_is_no_rule_is_refused_at_the_start(folder, source, said):
    """With its name, and what it lacks."""
    folder(source)
    with pytest.raises(ConfigError, match=said) as caught:
        aggregator_for(RULE.kind)
    assert RULE.kind in str(caught.value)


def test_a_rule_that_holds_updates_sees_them_all(fleet_of, folder):
    """The largest update of each parameter: needs every one."""
    folder(
        """
        import numpy as np

        class Largest:
            holds_updates = True

            def weigh(self, update, context):
                return 1.0

            def combine(self, held):
                largest = np.empty(held.size, np.float32)
                for start, values in held.columns():
                    largest[start : start + values.shape[1]] = values.max(axis=0)
                return largest
        """
    )
    fleet = fleet_of(aggregator=AggregatorTable(kind="my_rules:Largest")).start()
    devices = [fleet.device(f"d{number}") for number in range(2)]
    before = fleet.coordinator.weights.copy()
    send(fleet, devices, losses(1.0, 1.0))
    assert fleet.coordinator.weights - before == pytest.approx(np.ones_like(before), abs=1e-6)
    assert fleet.books().versions_ok == 1
