"""compose.yaml and its Dockerfile: after the schema, and with all that they name there to be found."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from unit_file import DEPLOY

from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from lichen.command import lichen

ROOT = DEPLOY.parent
COMPOSE = DEPLOY / "compose.yaml"
OURS = ("coordinator", "lichen", "fleet")
PUBLIC_PORTS = {"mosquitto": ["8883:8883"]}


@pytest.fixture(scope="module")
def services():
    """What compose.yaml describes."""
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.fixture
def fleet(tmp_path):
    """A fleet made for it: the broker is the service of that name."""
    plan = FleetPlan(
        name="barn",
        hosts=("broker.example",),
        coordinator_host="mosquitto",
        broker_path=Path("/fleet/broker"),
    )
    return FleetFolder.create(tmp_path / "fleet", plan)


def mounts(service):
    """Sources and targets; both forms of writing them are in use."""
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            source, target, *_ = volume.split(":")
            yield source, target
        else:
            yield volume["source"], volume["target"]


def test_it_is_what_the_schema_of_compose_says(tmp_path):
    """The Compose Specification's own, as check-jsonschema brings it; a word that it does not know fails."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("restart:", "restarts:"))
    for path, code in ((COMPOSE, 0), (wrong, 1)):
        done = subprocess.run(
            [*words, str(path)], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        assert done.returncode == code, done.stdout + done.stderr


def test_images_are_pinned(services):
    """By a version: neither latest nor a bare name; ours has the version of the project."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in services.items():
        repository, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d+\.\d+", tag), name
        if name in OURS:
            assert (repository, tag) == ("lichen-coordinator", version)
    bases = re.findall(r"^ARG PYTHON=(.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(bases) == 1
    assert re.match(r"3\.\d+-slim-", bases[0])


def test_there_is_no_secret_in_it(services):
    """Keys are files of the fleet; Grafana has no password, since nobody logs in."""
    for name, service in services.items():
        for key in service.get("environment", {}):
            assert not re.search("password|secret|token|key", key, re.IGNORECASE), (name, key)
    grafana = services["grafana"]["environment"]
    assert grafana["GF_AUTH_BASIC_ENABLED"] == "false"
    assert grafana["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_only_the_brokers_port_for_devices_is_open_to_others(services):
    """What has no certificates listens on loopback; the coordinator's own listener is not published."""
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or port in PUBLIC_PORTS[name], (name, port)


def test_what_it_mounts_is_there(services, fleet):
    """Of a fleet after `lichen fleet init`, of deploy/, or a volume that it declares."""
    declared = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for name, service in services.items():
        for source, _ in mounts(service):
            if source.startswith("${LICHEN_FLEET:-./fleet}"):
                assert Path(source.replace("${LICHEN_FLEET:-./fleet}", str(fleet.path))).is_dir(), (
                    name,
                    source,
                )
            elif source.startswith("./"):
                assert (DEPLOY / source).is_dir(), (name, source)
            else:
                assert source in declared or Path(source).exists(), (name, source)


def test_everybody_finds_the_fleets_files_where_they_are_mounted(services, fleet):
    """mosquitto's configuration and fleet.toml name no path that only this machine has."""
    configuration = (fleet.broker.path / "mosquitto.conf").read_text()
    named = re.findall(r"^(?:\w+file|pid_file|acl_file) (\S+)$", configuration, re.MULTILINE)
    assert len(named) == 10
    targets = dict(mounts(services["mosquitto"]))
    assert list(targets.values()) == ["/fleet/broker"]
    for path in named:
        assert Path(path).is_relative_to("/fleet/broker"), path
    assert str(fleet.path) not in configuration + (fleet.path / "fleet.toml").read_text()
    assert services["mosquitto"]["command"] == ["-c", "/fleet/broker/mosquitto.conf"]
    assert fleet.configuration.broker == "mqtts://mosquitto:8884"


def test_the_coordinator_cannot_sign_certificates(services):
    """Nothing is in the place of the authority's key; of the fleet only its state can be written."""
    volumes = {volume["target"]: volume for volume in services["coordinator"]["volumes"]}
    assert volumes["/fleet/private/ca.key"]["source"] == "/dev/null"
    assert volumes["/fleet"]["read_only"]
    assert {target for target, volume in volumes.items() if not volume.get("read_only")} == {
        "/fleet/coordinator"
    }


@pytest.mark.parametrize("name", ["mosquitto", *OURS])
def test_containers_have_no_more_rights_than_they_need(services, name):
    """No root, no capabilities, nothing to write but what is mounted, a bounded log."""
    service = services[name]
    assert service["user"] == "${LICHEN_UID:-1000}:${LICHEN_GID:-1000}"
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_a_revocation_reaches_the_broker(services):
    """The tool sees the broker as process 1 of its own: by its pid file, and as the same user."""
    assert services["fleet"]["pid"] == "service:mosquitto"
    assert services["mosquitto"]["entrypoint"] == ["mosquitto"]
    assert services["fleet"]["user"] == services["mosquitto"]["user"]


def test_the_coordinators_command_is_one_of_ours(services):
    """The image's words are the service's, and understood; Prometheus asks where they serve metrics."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (words,) = re.findall(r"^CMD (\[.+\])$", dockerfile, re.MULTILINE)
    assert json.loads(words) == services["coordinator"]["command"]
    group, run, *rest = services["coordinator"]["command"]
    command = lichen.get_command(None, group).get_command(None, run)
    host, _, port = command.make_context(run, rest).params["http"].partition(":")
    assert host == "0.0.0.0"
    (job,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"coordinator:{port}"]}]
    assert f"http://127.0.0.1:{port}/healthz" in dockerfile
    assert f"EXPOSE {port}" in dockerfile


def test_all_that_the_wheel_is_made_of_gets_into_the_image():
    """And nothing else does: a fleet's keys lie beside it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    taken = {line[1:] for line in lines if line.startswith("!")}
    assert taken == {*build["packages"], *build["force-include"], "pyproject.toml", "README.md", "LICENSE"}
    copied = re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert copied == [". ."]
    assert (DEPLOY / "Dockerfile").read_text().rpartition("FROM")[2].count("USER lichen") == 1
