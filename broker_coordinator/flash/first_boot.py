"""What the first boot is told: cloud-init's files, or a script, and the words in cmdline.txt.

cloud-init 22.4 and later, NoCloud: https://docs.cloud-init.io. A card is told once: by an instance-id that
no earlier one had, or by a word in cmdline.txt that the script takes out again.
"""

import hashlib
import json
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker_coordinator.flash.boot import FirstBoot
from broker_coordinator.flash.scripts import FIRST_BOOT, FIRSTRUN
from fl_protocol.errors import ConfigError

__all__ = ["FirstBootPlan", "Wifi", "edited_cmdline", "first_boot_files"]

_MEMORY = ("cgroup_enable=memory", "cgroup_memory=1")
_RUN = (
    "systemd.run=/boot/firstrun.sh",
    "systemd.run_success_action=reboot",
    "systemd.unit=kernel-command-line.target",
)
MAX_CMDLINE = 2000
"""Bytes; arm64's kernel reads 2048."""
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wifi:
    """A WPA2 network. ``password`` is the passphrase (8 to 63 characters) or the key (64 hex digits); only
    the key goes onto a card. ``country`` is two letters, which say what channels are legal; may be empty."""

    ssid: str
    password: str
    country: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.ssid.encode()) <= 32 or not self.ssid.isprintable():
            raise ConfigError(f"Wi-Fi {self.ssid!r}: a name is 1 to 32 bytes, all of them visible")
        if not re.fullmatch(r"[ -~]{8,63}|[0-9A-Fa-f]{64}", self.password):
            raise ConfigError("the Wi-Fi password is not 8 to 63 plain characters, or 64 hex digits")
        if not re.fullmatch(r"[A-Z]{2}|", self.country):
            raise ConfigError(f"Wi-Fi country {self.country!r}: two capital letters, such as DE")

    @property
    def key(self) -> str:
        """64 hex digits: PBKDF2 of the passphrase, IEEE 802.11i annex H.4."""
        if len(self.password) == 64:
            return self.password.lower()
        return hashlib.pbkdf2_hmac("sha1", self.password.encode(), self.ssid.encode(), 4096, 32).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBootPlan:
    """For one card. ``ssh_keys`` are public keys, in OpenSSH's form, that let ``user`` in (and make it, with
    sudo); without any no user is made."""

    device: str
    wifi: Wifi | None = None
    ssh_keys: Sequence[str] = ()
    user: str = "pi"

    def __post_init__(self) -> None:
        if not _USER.fullmatch(self.user) or self.user == "root":
            raise ConfigError(f"user {self.user!r}: a name is 1 to 32 of a-z 0-9 _ -")
        for key in self.ssh_keys:
            if not re.fullmatch(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [ -~]*)?", key):
                hint = "give the file that ends in .pub" if "PRIVATE" in key else ""
                raise ConfigError("that is no public key of OpenSSH", hint=hint)

    @property
    def hostname(self) -> str:
        """The device's name as a host may have it (RFC 1123)."""
        return re.sub(r"[^a-z0-9-]", "-", self.device.lower()).strip("-")[:63].rstrip("-") or "lichen"


def first_boot_files(plan: FirstBootPlan, mode: FirstBoot) -> Mapping[str, bytes]:
    """The files on the FAT, by path. Each call has an instance-id of its own."""
    files = {"lichen/first-boot.sh": FIRST_BOOT}
    if mode is FirstBoot.CLOUD_INIT:
        files["user-data"] = _user_data(plan)
        files["meta-data"] = (
            f"instance-id: lichen-{plan.hostname}-{secrets.token_hex(8)}\n"
            f"local-hostname: {json.dumps(plan.hostname)}\ndsmode: local\n"
        )
        if plan.wifi is not None:
            files["network-config"] = _network_config(plan.wifi)
    else:
        files["firstrun.sh"] = _firstrun(plan)
    return {path: text.encode() for path, text in files.items()}


def edited_cmdline(old: bytes, mode: FirstBoot) -> bytes:
    """cmdline.txt with the memory cgroup on, which the firmware of a Pi turns off, and with the script.

    Raises:
        ConfigError: it is not one line of text, or becomes too long.
    """
    try:
        text = old.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError("cmdline.txt on the image is no text") from None
    if "\n" in text or "\0" in text:
        raise ConfigError("cmdline.txt on the image has more than one line")
    words = [word for word in text.split() if word not in ("cgroup_disable=memory", *_MEMORY)]
    if mode is FirstBoot.SCRIPT:
        ours = ("systemd.run=", "systemd.run_success_action=", "systemd.unit=kernel-command-line.target")
        words = [word for word in words if not word.startswith(ours)]
    # The script takes out everything behind its first word, hence last.
    edited = " ".join([*words, *_MEMORY, *(_RUN if mode is FirstBoot.SCRIPT else ())])
    if len(edited) > MAX_CMDLINE:
        raise ConfigError(f"cmdline.txt would have {len(edited)} bytes, at most {MAX_CMDLINE} are read")
    return edited.encode() + b"\n"


def _user_data(plan: FirstBootPlan) -> str:
    lines = [
        "#cloud-config",
        f"# {plan.device}: written by lichen fleet flash.",
        f"hostname: {_quoted(plan.hostname)}",
        "manage_etc_hosts: true",
        "ssh_pwauth: false",
    ]
    if plan.ssh_keys:
        lines += [
            "users:",
            f"  - name: {_quoted(plan.user)}",
            "    groups: [sudo]",
            "    shell: /bin/bash",
            "    lock_passwd: true",
            '    sudo: "ALL=(ALL) NOPASSWD:ALL"',
            "    ssh_authorized_keys:",
            *(f"      - {_quoted(key)}" for key in plan.ssh_keys),
        ]
    ssh = " --ssh" if plan.ssh_keys else ""
    country = f" --country {plan.wifi.country}" if plan.wifi is not None and plan.wifi.country else ""
    search = (
        "for at in /boot/firmware /boot /boot/efi; do"
        " if [ -f $at/lichen/first-boot.sh ]; then"
        f" exec sh $at/lichen/first-boot.sh{ssh}{country}; fi; done"
    )
    # cloud-init takes runcmd for done once it has begun it. A power cut may come in the middle: hence also
    # at every boot, by a script that bootcmd, which runs each time, puts where those are.
    script = shlex.quote(f"#!/bin/sh\n{search}\n")
    each_boot = (
        "mkdir -p /var/lib/cloud/scripts/per-boot && cd /var/lib/cloud/scripts/per-boot &&"
        f" printf %s {script} >.lichen && chmod 755 .lichen && mv .lichen lichen-first-boot"
    )
    lines += ["bootcmd:", f"  - [sh, -c, {_quoted(each_boot)}]"]
    lines += ["runcmd:", f"  - [sh, -c, {_quoted(search)}]"]
    return "\n".join(lines) + "\n"


def _network_config(wifi: Wifi) -> str:
    lines = [
        "version: 2",
        "ethernets:",
        "  eth0:",
        "    dhcp4: true",
        "    optional: true",
        "wifis:",
        "  wlan0:",
        "    dhcp4: true",
        "    optional: true",
    ]
    if wifi.country:
        lines.append(f"    regulatory-domain: {_quoted(wifi.country)}")
    lines += ["    access-points:", f"      {_quoted(wifi.ssid)}:", f"        password: {_quoted(wifi.key)}"]
    return "\n".join(lines) + "\n"


def _firstrun(plan: FirstBootPlan) -> str:
    values = {
        "hostname": plan.hostname,
        "user": plan.user if plan.ssh_keys else "",
        "keys": "\n".join(plan.ssh_keys),
        # Bytes, as NetworkManager's own files have them: no character of a name means anything.
        "ssid": "".join(f"{byte};" for byte in plan.wifi.ssid.encode()) if plan.wifi else "",
        "psk": plan.wifi.key if plan.wifi else "",
        "country": plan.wifi.country if plan.wifi else "",
    }
    settings = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return FIRSTRUN.replace("@SETTINGS@\n", settings)


def _quoted(text: str) -> str:
    # JSON's texts are YAML's too, as long as no character beyond the BMP is written as two.
    return json.dumps(text, ensure_ascii=False)
