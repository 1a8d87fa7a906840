"""``agent.toml``: what is accepted, and how faults are told."""

import pytest

from edge_agent.configuration import read_agent_configuration
from fl_protocol.errors import ConfigError

KEY = "ed25519:" + "ab" * 32
LEAST = 'device = "pi-07"\nfleet = "demo"\nbroker = "mqtt://localhost"\nstate = "state"\n'


def read(tmp_path, text):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return read_agent_configuration(path)


def test_the_least_configuration(tmp_path):
    """Four keys and a trusted one; paths are relative to the file, the rest has defaults."""
    configuration = read(tmp_path, f'{LEAST}trusted_keys = ["{KEY}"]\n')
    assert configuration.state == tmp_path / "state"
    assert configuration.samples_path == tmp_path / "state" / "samples.db"
    assert configuration.trainer_path == tmp_path
    assert configuration.task == "main"
    assert configuration.runtimes == ("onnx", "litert", "tflite", "numpy")
    assert configuration.worker.kind == "process"
    assert configuration.address.port == 1883
    assert not configuration.insecure


def test_every_key(tmp_path):
    """All tables and keys that there are."""
    configuration = read(
        tmp_path,
        f"""{LEAST}
        task = "other"
        samples = "/var/lib/samples.db"
        insecure = true
        runtimes = ["numpy"]
        trainer = "my_app:LinearTrainer"
        trainer_path = "app"
        keepalive_s = 60
        [tls]
        ca = "ca.pem"
        [outbox]
        max_bytes = 1000000
        max_age_s = 60
        [gates]
        min_samples = 10
        quiet_hours = "22:00-06:30"
        mains_only = true
        max_temperature_c = 70
        max_load = 1.5
        [worker]
        kind = "inline"
        linger_s = 0
        memory_mb = 0
        nice = 0
        deadline_factor = 3
        """,
    )
    assert configuration.tls.ca == tmp_path / "ca.pem"
    assert configuration.trainer_path == tmp_path / "app"
    assert configuration.gates.quiet_minutes == (1320, 390)
    assert configuration.gates.max_temperature_c == 70.0


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "trusted_keys"),
        (f'insecure = true\ntrusted_keys = ["{KEY}"]', "trusted_keys"),
        ('trusted_keys = ["ed25519:12"]', "64 hex digits"),
        ('insecure = true\nruntimes = ["tensorflow"]', "tensorflow"),
        ("insecure = true\nruntimes = []", "runtimes"),
        ('insecure = true\ntrainer = "my app"', "module:Class"),
        ("insecure = true\nkeepalive_s = 1", "keepalive_s"),
        ('insecure = true\ntask = "a/b"', "a/b"),
        ('insecure = true\n[gates]\nquiet_hours = "at night"', "22:00-06:30"),
        ("insecure = true\n[gates]\nmin_samples = 0", "min_samples"),
        ('insecure = true\n[worker]\nkind = "thread"', "inline"),
        ("insecure = true\n[outbox]\nmax_bytes = 1", "max_bytes"),
    ],
)
def test_faults_are_named(tmp_path, line, word):
    """Each fault names its key and what would be right."""
    with pytest.raises(ConfigError, match=r"agent\.toml:") as caught:
        read(tmp_path, LEAST + line)
    assert word in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path):
    """Unknown and ill-typed keys in one go, each with its line."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f'{LEAST}insecure = "yes"\nruntime = "onnx"\n[gates]\nmin_sample = 3\n')
    assert len(caught.value.faults) == 3
    assert "agent.toml:6: runtime: unknown key, did you mean 'runtimes'?" in caught.value.faults
