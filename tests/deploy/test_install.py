"""deploy/install.sh puts nothing in place that the device does not trust, and never half of it."""

import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from broker_coordinator.fleet.payload import Member, PayloadDescription, write_payload
from fl_io.ed25519 import new_private_key, public_key_text, signer

DEPLOY = Path(__file__).parents[2] / "deploy"
KEY = new_private_key()
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
ABOUT = PayloadDescription(
    lichen="1", arch="x86_64", pythons=(PYTHON,), runtime="numpy", packages={}, debian=()
)


class Device:
    """A device's root below a folder, its credential, and a payload for it whose agent prints its words."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.config = folder / "config"
        self.config.mkdir()
        self.trust(KEY)
        (self.config / "device.key").write_text("secret")
        (self.config / "device.pem").write_text("certificate")

    def trust(self, *keys: bytes) -> None:
        """Have agent.toml trust these."""
        texts = ", ".join(f'"{public_key_text(key)}"' for key in keys)
        (self.config / "agent.toml").write_text(f'device = "d"\nstate = "state"\ntrusted_keys = [{texts}]\n')

    def payload(self, says: str = "one", key: bytes = KEY, python: str = PYTHON) -> tuple[Path, str]:
        """A payload, and its sha256."""
        files = {
            name: (DEPLOY / name).read_bytes()
            for name in ("install.sh", "lichen-agent", "lichen-agent.service")
        }
        files |= {
            "lib/python3/edge_agent/__init__.py": b"",
            "lib/python3/edge_agent/command.py": f"def main():\n    print({says!r})\n    return 0\n".encode(),
            f"lib/python{python}/for-this-python.txt": b"",
        }
        members = [Member(path=path, read=lambda c=content: c) for path, content in files.items()]
        path = self.folder / f"{says}.tar.xz"
        return path, write_payload(path, members, ABOUT, signer(key), preset=0)

    def install(
        self, *words: object, script: Path = DEPLOY / "install.sh"
    ) -> "subprocess.CompletedProcess[str]":
        """Run the installer, below this device's root."""
        return subprocess.run(
            ["sh", str(script), "--root", str(self.root), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": os.environ["PATH"], "LICHEN_PYTHON": sys.executable},
        )

    @property
    def says(self) -> str:
        """What the installed agent prints."""
        launcher = self.root / "opt/lichen/current/lichen-agent"
        words = [sys.executable, "-I", "-S", str(launcher)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env={})
        return done.stdout.strip() or done.stderr

    @property
    def installed(self) -> list[str]:
        """The payloads that are there, and leftovers."""
        return sorted(path.name for path in (self.root / "opt/lichen").iterdir())


def led_out(path: Path) -> bytes:
    """The tar of a payload, one of whose names leads out of its folder."""
    with tarfile.open(path) as old, tarfile.open(path.with_suffix(".tar"), "w") as new:
        for entry in old:
            content = old.extractfile(entry) if entry.isreg() else None
            entry.name = "../../../../command.py" if entry.name.endswith("command.py") else entry.name
            new.addfile(entry, content)
    return path.with_suffix(".tar").read_bytes()


@pytest.fixture
def device(tmp_path):
    """A device."""
    return Device(tmp_path)


def test_a_payload_is_installed(device):
    """Agent, configuration with its state where the service may write, unit, enabled."""
    done = device.install("--payload", device.payload()[0], "--config", device.config)
    assert done.returncode == 0, done.stderr
    assert device.says == "one"
    etc = device.root / "etc/lichen"
    assert 'state = "/var/lib/lichen"' in (etc / "agent.toml").read_text()
    assert stat.S_IMODE((etc / "device.key").stat().st_mode) == 0o640
    assert stat.S_IMODE(etc.stat().st_mode) == 0o750
    wanted = device.root / "etc/systemd/system/multi-user.target.wants/lichen-agent.service"
    assert wanted.read_text() == (DEPLOY / "lichen-agent.service").read_text()
    assert len(device.installed) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users are made")
def test_a_mounted_image_gets_the_user_of_the_service(device):
    """The group in the image's own /etc/group reads the key there, whatever its number is here."""
    etc = device.root / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\n")
    for _ in range(2):
        done = device.install("--payload", device.payload()[0], "--config", device.config)
        assert done.returncode == 0, done.stderr
    (user,) = [line.split(":") for line in (etc / "passwd").read_text().splitlines() if "lichen" in line]
    (group,) = [line.split(":") for line in (etc / "group").read_text().splitlines() if "lichen" in line]
    assert user[3] == group[2]
    assert user[5:] == ["/var/lib/lichen", "/usr/sbin/nologin"]
    assert (etc / "lichen" / "device.key").stat().st_gid == int(group[2])


def test_the_script_in_an_unpacked_payload_installs_it(device):
    """As a first boot does it: no archive, the folder that it lies in."""
    with tarfile.open(device.payload()[0]) as archive:
        archive.extractall(device.folder / "card", filter="data")
    done = device.install("--config", device.config, script=device.folder / "card" / "install.sh")
    assert done.returncode == 0, done.stderr
    assert device.says == "one"


def test_a_new_payload_takes_the_place_of_the_old_and_keeps_the_configuration(device):
    """The one before stays beside it; the one before that goes."""
    device.install("--payload", device.payload("one")[0], "--config", device.config)
    for says in ("two", "three"):
        assert device.install("--payload", device.payload(says)[0]).returncode == 0
        assert device.says == says
    assert len(device.installed) == 3
    assert (device.root / "etc/lichen/device.key").read_text() == "secret"


def test_the_same_again_mends_what_the_card_spoilt(device):
    """A file of the installed agent is damaged; the same payload puts it right."""
    device.install("--payload", device.payload()[0], "--config", device.config)
    (device.root / "opt/lichen/current/lib/python3/edge_agent/command.py").write_text("!")
    shutil.rmtree(device.root / "opt/lichen/current/lib/python3/edge_agent/__pycache__")
    assert device.install("--payload", device.payload()[0]).returncode == 0
    assert device.says == "one"


def test_any_of_the_trusted_keys_may_have_signed(device):
    """A fleet that changes its key names two."""
    device.trust(new_private_key(), KEY)
    assert device.install("--payload", device.payload()[0], "--config", device.config).returncode == 0


def test_another_fleets_payload_is_refused_and_the_old_agent_stays(device):
    """It is not even configured; nothing is left of it."""
    device.install("--payload", device.payload()[0], "--config", device.config)
    done = device.install("--payload", device.payload("evil", new_private_key())[0])
    assert (done.returncode, "not signed by a key" in done.stderr) == (1, True)
    assert device.says == "one"
    assert len(device.installed) == 2


def test_a_sha256_takes_the_place_of_the_signature(device):
    """For a device without openssl: the right one holds, a wrong one does not."""
    path, digest = device.payload("other", new_private_key())
    assert device.install("--payload", path, "--config", device.config, "--sha256", "0" * 64).returncode == 1
    assert not (device.root / "opt/lichen/current").exists()
    done = device.install("--payload", path, "--config", device.config, "--sha256", digest)
    assert (done.returncode, device.says) == (0, "other"), done.stderr


@pytest.mark.parametrize("fault", ["cut", "empty", "changed", "elsewhere", "absent"])
def test_a_payload_that_is_not_whole_is_refused_and_the_old_agent_stays(device, fault):
    """Cut off, empty, a file changed under the signature, one that leads out of its folder, or none there."""
    device.install("--payload", device.payload()[0], "--config", device.config)
    path, _ = device.payload("two")
    content = path.read_bytes()
    if fault == "absent":
        path.unlink()
    elif fault == "changed":
        path.write_bytes(lzma.compress(lzma.decompress(content).replace(b"print('two')", b"print('bad')")))
    elif fault == "elsewhere":
        path.write_bytes(lzma.compress(led_out(path)))
    else:
        path.write_bytes(content[:-200] if fault == "cut" else b"")
    done = device.install("--payload", path)
    assert (done.returncode, "no whole payload" in done.stderr) == (1, True), done.stderr
    assert device.says == "one"
    assert len(device.installed) == 2
    assert not list(device.folder.glob("*.py"))


def test_what_is_missing_is_said_with_what_to_do(device):
    """No configuration; no words that it knows."""
    done = device.install("--payload", device.payload()[0])
    assert (done.returncode, "lichen fleet enroll" in done.stderr) == (1, True)
    assert device.install("--purge").returncode == 2


def test_the_launcher_says_which_python_it_needs(device):
    """A device with another one: what to bundle, and exit code 78, which the unit does not try for ever."""
    device.install("--payload", device.payload(python="3.99")[0], "--config", device.config)
    assert "for Python 3.99" in device.says
    assert "lichen fleet bundle --python" in device.says
