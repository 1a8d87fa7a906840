"""The scripts that run on a device at its first boot, in POSIX sh; below LICHEN_ROOT in tests."""

__all__ = ["FIRSTRUN", "FIRST_BOOT"]

FIRST_BOOT = r"""#!/bin/sh
# Makes this machine a device of its fleet; written by `lichen fleet flash`. May be run again.
# first-boot.sh [--ssh] [--country CC] [--no-start]
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
# All of it is read before any of it runs: it removes itself.
{
root=${LICHEN_ROOT:-}
etc=$root/etc/lichen
log=$here/first-boot.log
ssh=no country='' start=''
while [ $# -gt 0 ]; do
  case $1 in
    --ssh) ssh=yes ;;
    --country) country=$2; shift ;;
    --no-start) start=--no-start ;;
  esac
  shift
done

say() { echo "$1"; echo "$1" >>"$log"; }
fail() { say "error: $1"; sync; exit 1; }

# Overwritten where it lies, then removed: FAT keeps what is only removed, for whoever reads the card next.
wipe() {
  [ -f "$1" ] || return 0
  length=$(wc -c <"$1")
  dd if=/dev/zero of="$1" bs="$length" count=1 conv=notrunc,fsync 2>/dev/null
  rm -f "$1"
}

give() { # FILE OWNER MODE
  if [ -z "$root" ]; then chown "$2" "$1" || fail "cannot give $1 to $2"; fi
  chmod "$3" "$1" || fail "cannot set the rights of $1"
}

if [ -f "$here/device/device.key" ]; then
  if [ -z "$root" ]; then
    getent group lichen >/dev/null || groupadd --system lichen || fail "cannot make group lichen"
    getent passwd lichen >/dev/null ||
      useradd --system --gid lichen --no-create-home --home-dir /var/lib/lichen \
        --shell /usr/sbin/nologin lichen ||
      fail "cannot make user lichen"
  fi
  umask 077
  mkdir -p "$etc" || fail "cannot make $etc"
  give "$etc" root:lichen 750
  # The key comes last here and goes first below: while it is on the FAT, all is.
  for name in ca.pem device.pem agent.toml device.key; do
    cp "$here/device/$name" "$etc/.$name.new" || fail "cannot write $etc/$name"
    give "$etc/.$name.new" root:lichen 640
    sync
    mv "$etc/.$name.new" "$etc/$name" || fail "cannot write $etc/$name"
  done
  sync
  say "credential installed in $etc"
fi
if [ -f "$etc/device.key" ]; then
  for name in device.key device.pem agent.toml ca.pem; do
    wipe "$here/device/$name"
  done
  rmdir "$here/device" 2>/dev/null
  # What cloud-init has read already: the network's key.
  if grep -q '^wifis:' "$here/../network-config" 2>/dev/null; then
    wipe "$here/../network-config"
    printf 'version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    optional: true\n' >"$here/../network-config"
  fi
  sync
fi

if [ -z "$root" ]; then
  rfkill unblock wifi 2>/dev/null
  [ -z "$country" ] || raspi-config nonint do_wifi_country "$country" >/dev/null 2>&1
  if [ "$ssh" = yes ]; then
    systemctl enable ssh >/dev/null 2>&1
    [ -n "$start" ] || systemctl start --no-block ssh >/dev/null 2>&1
  fi
fi

for payload in "$here"/payload.*; do
  [ -f "$payload" ] || continue
  umask 022
  mkdir -p "$root/var/tmp"
  work=$(mktemp -d "$root/var/tmp/lichen.XXXXXX") || fail "no room for the payload"
  trap 'rm -rf "$work"' EXIT
  tar -C "$work" --no-same-owner -xf "$payload" 2>/dev/null ||
    python3 -m tarfile -e "$payload" "$work" 2>/dev/null || fail "the payload cannot be unpacked"
  for script in "$work/install.sh" "$work"/*/install.sh; do
    [ -f "$script" ] && break
  done
  [ -f "$script" ] || fail "the payload has no install.sh"
  (cd "$(dirname "$script")" && sh ./install.sh ${root:+--root "$root"} $start) >"$work/said" 2>&1
  code=$?
  cat "$work/said"
  tail -c 4000 "$work/said" >>"$log"
  [ $code = 0 ] || fail "the payload's install.sh ended with $code"
  rm -f "$payload"
  say "payload installed"
done
say "first boot done"
rm -f "$here/first-boot.sh"
sync
exit 0
}
"""

FIRSTRUN = r"""#!/bin/sh
# First boot of Raspberry Pi OS; written by `lichen fleet flash`. cmdline.txt names it, once.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=${LICHEN_ROOT:-}
@SETTINGS@

# All of it is read before any of it runs: it removes itself.
{
once_only() {
  sed -i 's| *systemd\.run.*||' "$here/cmdline.txt"
  sync
}

# Again after a power cut, but not for ever.
tries=$(cat "$here/lichen/tries" 2>/dev/null || echo 0)
echo $((tries + 1)) >"$here/lichen/tries"
sync
[ "$tries" -lt 3 ] || once_only

if [ -z "$root" ]; then
  old=$(cat /etc/hostname)
  echo "$hostname" >/etc/hostname
  sed -i "s/127\.0\.1\.1.*$old/127.0.1.1\t$hostname/" /etc/hosts
  if [ -n "$user" ]; then
    if [ -x /usr/lib/userconf-pi/userconf ]; then /usr/lib/userconf-pi/userconf "$user" '*'; fi
    id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --groups sudo "$user"
    home=$(getent passwd "$user" | cut -d: -f6)
    install -d -m 700 -o "$user" -g "$(id -gn "$user")" "$home/.ssh"
    printf '%s\n' "$keys" >"$home/.ssh/authorized_keys"
    chown "$user:" "$home/.ssh/authorized_keys"
    chmod 600 "$home/.ssh/authorized_keys"
    mkdir -p /etc/sudoers.d
    echo "$user ALL=(ALL) NOPASSWD:ALL" >"/etc/sudoers.d/010_$user-nopasswd"
    chmod 440 "/etc/sudoers.d/010_$user-nopasswd"
    mkdir -p /etc/ssh/sshd_config.d
    echo "PasswordAuthentication no" >/etc/ssh/sshd_config.d/10-lichen.conf
  fi
fi

if [ -n "$ssid" ]; then
  connections=$root/etc/NetworkManager/system-connections
  mkdir -p "$connections"
  umask 077
  cat >"$connections/lichen-wifi.nmconnection" <<WIFI
[connection]
id=lichen-wifi
type=wifi
autoconnect=true

[wifi]
mode=infrastructure
ssid=$ssid

[wifi-security]
key-mgmt=wpa-psk
psk=$psk

[ipv4]
method=auto

[ipv6]
method=auto
WIFI
  umask 022
fi

set -- --no-start
[ -z "$user" ] || set -- "$@" --ssh
[ -z "$country" ] || set -- "$@" --country "$country"
sh "$here/lichen/first-boot.sh" "$@"

once_only
length=$(wc -c <"$here/firstrun.sh")
dd if=/dev/zero of="$here/firstrun.sh" bs="$length" count=1 conv=notrunc,fsync 2>/dev/null
rm -f "$here/firstrun.sh" "$here/lichen/tries"
sync
exit 0
}
"""
