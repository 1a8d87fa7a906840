"""The report of a demo: one page that needs nothing else, and the same figures as JSON."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hil.demo.course import Moment
from hil.demo.figures import DeviceShare, Figures, VersionPoint
from hil.demo.report import write_report
from hil.demo.screen import Screen

SUMMARY = {
    "devices": 2,
    "versions": 2,
    "model": "digits",
    "metric": "accuracy",
    "accuracy": 0.9125,
    "metrics": {"accuracy": 0.9125, "loss": 0.3},
    "held_out_examples": 360,
    "caveat": "",
    "reported": {},
    "updates_accepted": 5,
    "updates_refused": 1,
    "bytes_up_total": 4000,
    "bytes_up_per_update": 800.0,
    "float32_bytes_per_update": 9640,
    "payload_bytes_per_update": 356,
    "ratio_payload": 27.08,
    "ratio_all": 12.05,
    "seconds": 3.2,
    "broker": "mqtt://<b>&host:1883",
    "runtime": "mixed",
    "runtimes": {
        "numpy": {"devices": 1, "accepted": 3, "folded": 2},
        "<tflite>": {"devices": 1, "accepted": 2, "folded": 2},
    },
    "runtimes_absent": {"litert": "not <installed>"},
    "codec": "eden(bits=1)",
    "partition": "iid",
    "seed": 0,
    "parameters": 2410,
    "lost": 0,
    "duplicated": 0,
    "balanced": True,
    "versions_replayed": 2,
    "replay_ok": True,
}


@pytest.fixture
def figures() -> Figures:
    """Those of a small demo."""
    return Figures(
        summary=SUMMARY,
        versions=(
            VersionPoint(
                version=0,
                metrics={"accuracy": 0.1},
                device_metrics={},
                bytes_up=900,
                updates=0,
                staleness=0.0,
            ),
            VersionPoint(
                version=1,
                metrics={"accuracy": 0.7},
                device_metrics={"accuracy": 0.6},
                bytes_up=2100,
                updates=2,
                staleness=0.5,
            ),
            VersionPoint(
                version=2,
                metrics={"accuracy": 0.9125},
                device_metrics={"accuracy": 0.9},
                bytes_up=4000,
                updates=2,
                staleness=1.0,
            ),
        ),
        devices=(
            DeviceShare(device="dev-00", runtime="numpy", updates=3, examples=600, bytes_up=2300),
            DeviceShare(device="dev-<01>", runtime="<tflite>", updates=1, examples=700, bytes_up=1700),
        ),
        staleness={0: 3, 2: 1},
    )


def test_the_page_stands_alone(figures, tmp_path, references):
    """No script, no picture, no font, no style sheet from anywhere."""
    page = write_report(tmp_path, figures).read_text(encoding="utf-8")
    assert references(page) == []
    assert not re.search(r"(src|href)\s*=", page)
    assert "<b>&host" not in page
    assert "dev-<01>" not in page
    assert "<tflite>" not in page
    assert "<installed>" not in page


def test_the_page_has_the_four_plots_and_every_figure_of_the_head(figures, tmp_path):
    """Each plot is valid XML; staleness nobody had is a bar of height nothing, not a gap."""
    page = write_report(tmp_path, figures).read_text(encoding="utf-8")
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    titles = [plot.attrib["aria-label"] for plot in plots]
    assert titles == ["Accuracy over versions", "Accuracy over bytes", "Staleness", "Contribution per device"]
    svg = "{http://www.w3.org/2000/svg}"
    assert len(list(plots[2].iter(f"{svg}rect"))) == 3
    assert len(list(plots[3].iter(f"{svg}rect"))) == 2
    for shown in ("0.912", "800 B", "12.1x", "27.1x", "0 / 0", ">5<"):
        assert shown in page, shown


def test_the_page_says_what_each_runtime_did_and_why_one_did_nothing(figures, tmp_path):
    """Devices, accepted and folded updates in a row; a reason in words."""
    page = write_report(tmp_path, figures).read_text(encoding="utf-8")
    assert "<tr><td>numpy</td><td>1</td><td>3</td><td>2</td></tr>" in page
    assert "litert took no part: not &lt;installed&gt;" in page


def test_a_model_without_accuracy_is_drawn_by_its_own_metric(figures, tmp_path):
    """The headline and both plots are of the loss, and nothing is called accuracy."""
    summary = SUMMARY | {"metric": "loss", "metrics": {"loss": 12.5}, "accuracy": None, "model": "pump"}
    points = tuple(replace(point, metrics={"loss": 20.0 - point.version}) for point in figures.versions)
    page = write_report(tmp_path, replace(figures, summary=summary, versions=points)).read_text("utf-8")
    assert "Loss over versions" in page
    assert ">12.5<" in page
    assert "ccuracy" not in page


def test_where_the_coordinator_measures_another_model_the_devices_speak(figures, tmp_path):
    """With statistics that are each device's own, its figure is not what devices get."""
    said = {"version": 1, "devices": 2, "examples": 80, "metrics": {"accuracy": 0.97, "loss": 0.1}}
    told = SUMMARY | {"caveat": "with <the> statistics it came with", "reported": said}
    page = write_report(tmp_path, replace(figures, summary=told)).read_text("utf-8")
    assert "<b>0.970</b><span>accuracy on 80 held-out samples of 2 devices, version 1</span>" in page
    assert "is measured with &lt;the&gt; statistics" in page
    console = Console(record=True, width=120)
    Screen(console, versions=2, devices=2, float32_bytes=40).finish(replace(figures, summary=told))
    shown = console.export_text()
    assert re.search(r"accuracy on devices\s+0.9700 on 80 held-out samples of 2 devices, version 1", shown)
    assert "measured with <the> statistics it came with" in shown
    page = write_report(tmp_path, replace(figures, summary=SUMMARY | {"reported": said})).read_text("utf-8")
    assert "0.970" not in page


def test_the_line_of_a_moment_tells_what_devices_say():
    """Beside the coordinator's figure, where it has a caveat."""
    moment = Moment(
        seconds=2.0,
        version=1,
        metrics={"accuracy": 0.4},
        devices_online=2,
        updates=3,
        refused=0,
        bytes_up=100,
        bytes_down=100,
        reported={"accuracy": 0.9},
    )
    console = Console(record=True, width=200)
    Screen(console, versions=2, devices=2, float32_bytes=40).show(moment)
    assert "accuracy 0.400, on devices 0.900  devices 2/2" in console.export_text()


def test_the_json_holds_the_summary_and_the_rows_behind_the_plots(figures, tmp_path):
    """What is drawn can be drawn again."""
    write_report(tmp_path, figures)
    body = json.loads((tmp_path / "report.json").read_text())
    assert {name: body[name] for name in SUMMARY} == SUMMARY
    assert [point["version"] for point in body["by_version"]] == [0, 1, 2]
    assert body["by_device"][1]["device"] == "dev-<01>"
    assert body["by_staleness"] == {"0": 3, "2": 1}


def test_a_demo_without_a_version_or_counters_is_reported_too(figures, tmp_path):
    """A system that counts no bytes, a run that ended early: dashes, no stack trace."""
    nothing = dict.fromkeys(("accuracy", "bytes_up_total", "bytes_up_per_update", "ratio_all"))
    empty = replace(
        figures, summary=SUMMARY | nothing | {"versions": 0, "metrics": {}}, versions=(), staleness={}
    )
    page = write_report(tmp_path, empty).read_text(encoding="utf-8")
    assert "no data" in page
    assert page.count("n/a") == 2
