"""A coordinator and a broker started as their units do, and what Prometheus and Grafana make of them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from secure_fleet import SecureFleet, free_ports, mosquitto_program
from unit_file import DEPLOY, unit_command

from hil.processes import ManagedProcess

pytestmark = [pytest.mark.process, pytest.mark.mosquitto]

PATIENCE_S = 60.0
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/lichen.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
FUNCTIONS = ("rate", "increase", "changes", "delta", "sum", "and")
OURS_TO_PROMETHEUS = {"up"}
"""What Prometheus itself says of what it asks."""


class Systemd:
    """systemd's end of a notification socket."""

    def __init__(self, path):
        self.path = path
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(path))
        self._channel.settimeout(PATIENCE_S)

    def hears(self, line):
        """Wait until it was said."""
        while line not in self._channel.recv(4096).decode().splitlines():
            pass

    def close(self):
        self._channel.close()


def process(name, words, folder):
    return ManagedProcess(name, words, folder / f"{name}.log", folder=folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Broker and coordinator by the words of their units; a folder of its own is the fleet's."""
    folder = tmp_path_factory.mktemp("site")
    barn = SecureFleet(folder)
    barn.fleet.enroll("pi-01")
    assert barn.workload is not None

    def here(unit):
        return [word.replace("/var/lib/lichen-fleet", str(barn.path)) for word in unit_command(unit)]

    _, *words = here("lichen-broker.service")
    barn.mosquitto = process("mosquitto", [mosquitto_program(), *words], folder)
    barn.start_broker()
    barn.systemd = Systemd(folder / "notify")
    (port,) = free_ports(1)
    barn.metrics = f"127.0.0.1:{port}"
    _, *words = here("lichen-coordinator.service")
    words = [word.replace("127.0.0.1:9641", barn.metrics) for word in words]
    barn.coordinator = process("coordinator", [sys.executable, "-m", "lichen", *words], folder)
    barn.coordinator.start({"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "2000000"})
    barn.systemd.hears("READY=1")
    barn.until(lambda: barn.status().get("state") == "running")
    yield barn
    barn.coordinator.stop()
    barn.systemd.close()
    barn.stop()


def get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def metrics_of(scrape):
    """The names that a scrape offers; of a counter, with its ending."""
    return {name for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", scrape, re.MULTILINE)}


def named(expression):
    """The metrics of an expression."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)
    return {word for word in re.findall(r"[a-z_]+", bare) if word not in FUNCTIONS}


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions():
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    marked = [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    return [*shown, *marked, *(alert["expr"] for alert in ALERTS)]


def test_systemd_hears_that_the_coordinator_is_alive(site):
    """Again and again, as its loop turns; and it is well."""
    for _ in range(2):
        site.systemd.hears("WATCHDOG=1")
    assert get(f"http://{site.metrics}/healthz") == "ok\n"


def test_every_metric_of_dashboard_and_alerts_is_one_that_the_coordinator_has(site):
    """And the coordinator has none that nobody looks at."""
    offered = metrics_of(get(f"http://{site.metrics}/metrics"))
    assert len(offered) > 25
    assert "lichen_accuracy" not in offered  # until a version was measured
    used = {name for expression in expressions() for name in named(expression)}
    assert used - OURS_TO_PROMETHEUS - offered == {"lichen_accuracy"}
    seldom = {"lichen_runtime_updates_folded_total"}
    assert offered - used == seldom


def test_the_dashboard_is_whole():
    """Panels do not overlap, have ids of their own, and ask the source that is provisioned."""
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (source,) = sources["datasources"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    mounted = [volume.split(":")[1] for volume in compose["grafana"]["volumes"]]
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/lichen.yml").read_text())
    assert provider["providers"][0]["options"]["path"] in mounted
    assert DASHBOARD["uid"] == "lichen"


def test_every_alert_says_what_to_do_and_stands_in_the_guide():
    """Under its own name."""
    guide = (DEPLOY.parent / "docs" / "guide-operating.md").read_text()
    for alert in ALERTS:
        assert alert["annotations"]["action"]
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert f"`{alert['alert']}`" in guide


def test_prometheus_takes_configuration_and_rules(promtool):
    """`promtool check` finds no fault, and the rules fire when they are to."""
    folder = DEPLOY / "prometheus"
    for words in (
        ["check", "config", folder / "prometheus.yml"],
        ["test", "rules", DEPLOY.parent / "tests/deploy/alerts_test.yml"],
    ):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_real_prometheus_answers_every_question(site, tmp_path):
    """It scrapes the coordinator; whatever panels and alerts ask is understood, and gauges have a value."""
    prometheus = shutil.which("prometheus") or pytest.skip("prometheus is not installed")
    configuration = (DEPLOY / "prometheus/prometheus.yml").read_text()
    assert "coordinator:9641" in configuration
    (tmp_path / "prometheus.yml").write_text(
        configuration.replace("coordinator:9641", site.metrics).replace("15s", "1s")
    )
    shutil.copy(DEPLOY / "prometheus/alerts.yml", tmp_path)
    (port,) = free_ports(1)
    words = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    words += [f"--web.listen-address=127.0.0.1:{port}"]
    watcher = process("prometheus", [prometheus, *words], tmp_path)
    watcher.start()
    try:

        def ask(what, **query):
            url = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(query)}"
            return json.loads(get(url))

        def scraped():
            assert watcher.running, watcher.last_words()
            try:
                return ask("query", query='up{job="lichen"} == 1')["data"]["result"]
            except (urllib.error.URLError, ConnectionError):
                return []

        site.until(scraped)
        for expression in expressions():
            answer = ask("query", query=expression)
            assert answer["status"] == "success", expression
        for gauge in ("lichen_up", "lichen_version", "lichen_devices_enrolled", "lichen_insecure"):
            (row,) = ask("query", query=gauge)["data"]["result"]
            assert row["value"][1] == ("0" if gauge in ("lichen_insecure", "lichen_version") else "1"), gauge
        groups = ask("rules")["data"]["groups"]
        assert [rule["name"] for rule in groups[0]["rules"]] == [alert["alert"] for alert in ALERTS]
    finally:
        watcher.stop()


def test_a_revocation_is_read_by_the_broker_that_the_unit_started(site):
    """By the process id that it wrote: `lichen fleet revoke` says so, and the door is shut."""
    site.fleet.enroll("thief")
    with_key = site.files("thief")
    assert site.client(with_key, "thief").admitted
    said = site.lichen("fleet", "revoke", "thief", "--fleet", str(site.path))
    assert "reads its files again" in said
    assert not site.client(with_key, "thief").admitted
    site.hang_up()


def test_systemd_hears_that_the_coordinator_stops(site):
    """The last of this module: a stop that is meant is no failure."""
    site.coordinator.signal(signal.SIGTERM)
    site.systemd.hears("STOPPING=1")
    ends = time.monotonic() + PATIENCE_S
    while site.coordinator.running:
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert site.coordinator.exit_code == 0
    assert os.path.exists(site.path / "coordinator" / "coordinator.db")
