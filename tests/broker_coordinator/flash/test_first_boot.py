"""What the first boot is told: read by YAML and by cloud-init itself, and the scripts run in a folder."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from broker_coordinator.flash.boot import FirstBoot
from broker_coordinator.flash.first_boot import FirstBootPlan, Wifi, edited_cmdline, first_boot_files
from fl_protocol.errors import ConfigError

KEY = (
    'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000000 you@here "it\'s $HOME"'
)
WIFI = Wifi(ssid="Stall: #1 \"'$(id)", password="correct horse", country="DE")
CLOUD, SCRIPT = FirstBoot.CLOUD_INIT, FirstBoot.SCRIPT


def files_of(mode, **options):
    return first_boot_files(FirstBootPlan(device="Pi_07", **options), mode)


@pytest.fixture
def card(tmp_path):
    """A FAT as the device mounts it, with a credential and a payload; and the root of the device."""

    def make(mode, **options):
        boot, root = tmp_path / "boot", tmp_path / "root"
        shutil.rmtree(boot, ignore_errors=True)
        (boot / "lichen" / "device").mkdir(parents=True)
        for name in ("device.key", "device.pem", "ca.pem", "agent.toml"):
            (boot / "lichen" / "device" / name).write_text(f"secret of {name}\n")
        for path, content in files_of(mode, **options).items():
            (boot / path).write_bytes(content)
        (boot / "cmdline.txt").write_bytes(edited_cmdline(b"console=tty1 rootwait\n", mode))
        return boot, root

    return make


def payload(boot, script):
    with tarfile.open(boot / "lichen" / "payload.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("bundle-1/install.sh")
        member.size = len(script)
        archive.addfile(member, io.BytesIO(script))


def boots(script, root, *words):
    command = ["sh", str(script), *words]
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "LICHEN_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_cloud_init_is_told_all_of_it():
    """Names with every quote in them arrive as they are; the password does not, only the key."""
    files = files_of(CLOUD, wifi=WIFI, ssh_keys=[KEY], user="ops")
    user = yaml.safe_load(files["user-data"])
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert (user["hostname"], user["ssh_pwauth"]) == ("pi-07", False)
    assert user["users"][0]["name"] == "ops"
    assert user["users"][0]["ssh_authorized_keys"] == [KEY]
    network = yaml.safe_load(files["network-config"])["wifis"]["wlan0"]
    assert network["regulatory-domain"] == "DE"
    assert network["access-points"] == {WIFI.ssid: {"password": WIFI.key}}
    for content in files.values():
        assert b"correct horse" not in content
    assert "network-config" not in files_of(CLOUD)
    assert "users" not in yaml.safe_load(files_of(CLOUD)["user-data"])


def test_the_key_of_a_network_is_the_standard_one():
    """IEEE 802.11i, annex H.4.3: test vectors."""
    assert Wifi(ssid="IEEE", password="password").key == (
        "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    )


@pytest.mark.parametrize("options", [{}, {"ssh_keys": [KEY], "wifi": WIFI}], ids=["bare", "full"])
def test_cloud_init_takes_it(tmp_path, options):
    """By its own schema; it warns of what it does not know."""
    program = shutil.which("cloud-init")
    if program is None:
        pytest.skip("cloud-init is not installed")
    (tmp_path / "user-data").write_bytes(files_of(CLOUD, **options)["user-data"])
    words = [program, "schema", "--config-file", str(tmp_path / "user-data")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


def test_cloud_init_makes_netplan_of_the_network(tmp_path):
    """What the system's network is then configured with: name and key as they are."""
    program = shutil.which("cloud-init")
    if program is None:
        pytest.skip("cloud-init is not installed")
    (tmp_path / "network-config").write_bytes(files_of(CLOUD, wifi=WIFI)["network-config"])
    words = ["-p", tmp_path / "network-config", "-k", "yaml", "-d", tmp_path, "-D", "debian", "-O", "netplan"]
    done = subprocess.run(
        [program, "devel", "net-convert", *map(str, words)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    plan = yaml.safe_load(next((tmp_path / "etc" / "netplan").iterdir()).read_text())["network"]
    assert plan["wifis"]["wlan0"]["access-points"] == {WIFI.ssid: {"password": WIFI.key}}


def test_every_boot_asks_again(tmp_path):
    """bootcmd puts the script where cloud-init runs it each time; with nothing left to do it does nothing."""
    command = yaml.safe_load(files_of(CLOUD, wifi=WIFI)["user-data"])["bootcmd"][0]
    text = command[2].replace("/var/lib/cloud", str(tmp_path)).replace("/boot/efi", str(tmp_path))
    for _ in range(2):
        subprocess.run([*command[:2], text], check=True)
    script = tmp_path / "scripts" / "per-boot" / "lichen-first-boot"
    subprocess.run([script], check=True)
    (tmp_path / "lichen").mkdir()
    (tmp_path / "lichen" / "first-boot.sh").write_text('echo "$@" >"$(dirname "$0")/asked"\n')
    subprocess.run([script], check=True)
    assert (tmp_path / "lichen" / "asked").read_text() == "--country DE\n"


@given(st.text(min_size=1, max_size=12), st.text(" ~abcXYZ09$`\"'\\#:", min_size=8, max_size=63))
def test_any_network_is_told_or_refused(ssid, password):
    """Whatever is in its name: YAML gives it back, and a shell too."""
    try:
        wifi = Wifi(ssid=ssid, password=password)
    except ConfigError:
        return
    points = yaml.safe_load(files_of(CLOUD, wifi=wifi)["network-config"])["wifis"]["wlan0"]["access-points"]
    assert points == {ssid: {"password": wifi.key}}
    line = next(
        x for x in files_of(SCRIPT, wifi=wifi)["firstrun.sh"].decode().splitlines() if x[:5] == "ssid="
    )
    assert bytes(int(byte) for byte in line[6:-1].rstrip(";").split(";")).decode() == ssid


def test_the_command_line_is_changed_once():
    """Memory limits on, the firmware's word against them out; a second flash changes nothing more."""
    old = b"console=tty1 cgroup_disable=memory systemd.run=/boot/other.sh rootwait \n"
    once = edited_cmdline(old, SCRIPT)
    assert edited_cmdline(once, SCRIPT) == once
    assert once.startswith(
        b"console=tty1 rootwait cgroup_enable=memory cgroup_memory=1 systemd.run=/boot/firstrun.sh "
    )
    assert edited_cmdline(b"a\n", CLOUD) == b"a cgroup_enable=memory cgroup_memory=1\n"
    for bad in (b"a\nb\n", b"\xff", b"a" * 2000):
        with pytest.raises(ConfigError, match=r"cmdline\.txt"):
            edited_cmdline(bad, CLOUD)


def test_the_first_boot_installs_and_leaves_no_secret(card):
    """Credential and payload are on the device, and on the card is neither, nor the network's key."""
    boot, root = card(CLOUD, wifi=WIFI)
    payload(boot, b'echo "$@" >"$2/installed"\n')
    device = boot / "lichen" / "device" / "device.key"
    with device.open("rb") as key:
        done = boots(boot / "lichen" / "first-boot.sh", root)
        assert key.read() == bytes(len("secret of device.key\n"))  # overwritten where it was
    assert done.returncode == 0, done.stdout + done.stderr
    etc = root / "etc" / "lichen"
    assert (etc / "device.key").read_text() == "secret of device.key\n"
    assert (etc / "device.key").stat().st_mode & 0o777 == 0o640
    assert etc.stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in etc.iterdir()) == ["agent.toml", "ca.pem", "device.key", "device.pem"]
    assert (root / "installed").read_text() == f"--root {root}\n"
    left = {path.name for path in boot.rglob("*") if path.is_file()}
    assert left == {"user-data", "meta-data", "network-config", "cmdline.txt", "first-boot.log"}
    assert "wifis" not in yaml.safe_load((boot / "network-config").read_text())
    for path in boot.rglob("*"):
        assert not path.is_file() or WIFI.key not in path.read_text()


def test_a_power_cut_in_the_first_boot_is_made_up_for(card):
    """It went before the key was installed, or after: the next boot ends as the first would have."""
    boot, root = card(CLOUD)
    (root / "etc" / "lichen").mkdir(parents=True)
    (root / "etc" / "lichen" / "ca.pem").write_text("half")
    assert boots(boot / "lichen" / "first-boot.sh", root).returncode == 0
    assert (root / "etc" / "lichen" / "ca.pem").read_text() == "secret of ca.pem\n"
    boot, root = card(CLOUD)
    (boot / "lichen" / "device" / "device.key").unlink()
    assert boots(boot / "lichen" / "first-boot.sh", root).returncode == 0
    assert not (boot / "lichen" / "device").exists()


def test_a_payload_that_fails_is_told_on_the_card(card):
    """The log lies where whoever pulls the card can read it; the next boot tries again."""
    boot, root = card(CLOUD)
    payload(boot, b"echo there is no python3 >&2\nexit 3\n")
    assert boots(boot / "lichen" / "first-boot.sh", root).returncode == 1
    log = (boot / "lichen" / "first-boot.log").read_text()
    assert "there is no python3" in log
    assert "ended with 3" in log
    assert (boot / "lichen" / "payload.tar.xz").exists()
    assert (boot / "lichen" / "first-boot.sh").exists()
    assert not (boot / "lichen" / "device").exists()


def test_the_script_runs_once_and_removes_itself(card):
    """Bookworm: a network that NetworkManager knows, the credential, and cmdline.txt as it was."""
    boot, root = card(SCRIPT, wifi=WIFI, ssh_keys=[KEY])
    payload(boot, b'echo "$@" >"$2/installed"\n')
    done = boots(boot / "firstrun.sh", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        boot / "cmdline.txt"
    ).read_text() == "console=tty1 rootwait cgroup_enable=memory cgroup_memory=1\n"
    assert (root / "installed").read_text() == f"--root {root} --no-start\n"
    network = root / "etc" / "NetworkManager" / "system-connections" / "lichen-wifi.nmconnection"
    assert network.stat().st_mode & 0o777 == 0o600
    assert f"psk={WIFI.key}\n" in network.read_text()
    assert f"ssid={''.join(f'{byte};' for byte in WIFI.ssid.encode())}\n" in network.read_text()
    assert {p.name for p in boot.rglob("*") if p.is_file()} == {"cmdline.txt", "first-boot.log"}


def test_a_script_that_is_cut_off_again_and_again_gives_up(card):
    """Three times it may begin anew; from then on the system boots as usual."""
    boot, root = card(SCRIPT)
    (boot / "lichen" / "tries").write_text("3\n")
    (boot / "lichen" / "first-boot.sh").write_text("kill -9 $PPID\n")
    boots(boot / "firstrun.sh", root)
    assert "systemd.run" not in (boot / "cmdline.txt").read_text()
    boot, root = card(SCRIPT)
    (boot / "lichen" / "first-boot.sh").write_text("kill -9 $PPID\n")
    boots(boot / "firstrun.sh", root)
    assert "systemd.run" in (boot / "cmdline.txt").read_text()
    assert (boot / "lichen" / "tries").read_text() == "1\n"


MACHINE = """
set -eu
mount -t tmpfs machine "$1" && mkdir "$1/upper" "$1/work" "$1/root" || exit 77
mount -t overlay machine -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root" || exit 77
mkdir -p "$1/root/boot" && rm -rf "$1/root/boot/firmware" "$1/root/etc/lichen"
cp -r "$2" "$1/root/boot/firmware"
mount --bind /dev "$1/root/dev"
chroot "$1/root" sh /boot/firmware/firstrun.sh >&2
chroot "$1/root" sh -c '
  cd /etc
  stat -c "%n %U %G %a" lichen lichen/device.key
  cat hostname ~ops/.ssh/authorized_keys /installed
  find /boot/firmware -type f
'
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a machine over this one needs root and overlayfs")
def test_the_first_boot_of_a_whole_machine(tmp_path, card):
    """This one, with all that is written to it kept in memory: user, owners, name, SSH key, payload."""
    boot, _ = card(SCRIPT, wifi=WIFI, ssh_keys=[KEY], user="ops")
    payload(boot, b'echo "$@ $(id -u) $(pwd)" >/installed\n')
    (tmp_path / "machine").mkdir()
    words = ["unshare", "-m", "sh", "-c", MACHINE, "sh", tmp_path / "machine", boot]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("a machine over this one needs root and overlayfs")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["lichen root lichen 750", "lichen/device.key root lichen 640", "pi-07", KEY]
    assert lines[4].startswith("--no-start 0 /var/tmp/lichen.")
    assert sorted(lines[5:]) == ["/boot/firmware/cmdline.txt", "/boot/firmware/lichen/first-boot.log"]


@pytest.mark.parametrize("mode", list(FirstBoot))
def test_every_shell_text_is_a_shells(tmp_path, mode):
    """dash reads the scripts, and what user-data gives to it."""
    files = files_of(mode, wifi=WIFI, ssh_keys=[KEY])
    texts = [content for path, content in files.items() if path.endswith(".sh")]
    if mode is CLOUD:
        user = yaml.safe_load(files["user-data"])
        texts += [command[2].encode() for command in (*user["bootcmd"], *user["runcmd"])]
    assert len(texts) > 1
    for text in texts:
        subprocess.run(["sh", "-n"], input=text, check=True)
