#!/bin/sh
# Puts a Lichen payload (made by `lichen fleet bundle`) in place on a device that runs already:
#
#   sh install.sh --payload lichen-aarch64.tar.xz --config FOLDER
#
# FOLDER is what `lichen fleet enroll` made for this device; without --config an earlier one stays. Without
# --payload it is the unpacked payload that this script lies in. Needs python3; no pip, no venv, no network.
# Run it again at any time: it is done in full, or the agent that was there goes on.
set -eu

usage() {
  cat >&2 <<'USAGE'
usage: install.sh [--payload FILE] [--config FOLDER] [--sha256 HEX] [--root DIR] [--no-start]
  --payload FILE   what `lichen fleet bundle` made; default: the folder that this script is in
  --config FOLDER  what `lichen fleet enroll` made for this device
  --sha256 HEX     FILE has this sha256: takes the place of the signature, where there is no openssl
  --root DIR       install below DIR: an image that is mounted there, or a trial; starts nothing
  --no-start       enable the service, but do not start it
USAGE
  exit 2
}

fail() {
  echo "error: $1" >&2
  [ -z "${2:-}" ] || echo "  hint: $2" >&2
  exit 1
}

payload='' config='' sha256='' root='' start=yes
while [ $# -gt 0 ]; do
  case $1 in
    --payload | --config | --sha256 | --root)
      [ $# -ge 2 ] || usage
      case $1 in
        --payload) payload=$2 ;;
        --config) config=$2 ;;
        --sha256) sha256=$2 ;;
        --root) root=${2%/} ;;
      esac
      shift 2
      ;;
    --no-start)
      start=no
      shift
      ;;
    *) usage ;;
  esac
done

python=${LICHEN_PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=$(command -v python3) || fail "there is no python3" "apt-get install python3"
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "only root can install a service" "sudo sh install.sh ..."

home=$root/opt/lichen etc=$root/etc/lichen units=$root/etc/systemd/system
toml=$etc/agent.toml
[ -z "$config" ] || toml=$config/agent.toml
[ -f "$toml" ] || fail "there is no $toml" "name what \`lichen fleet enroll\` made for this device with --config"

umask 022
mkdir -p "$home" "$units"
rm -rf "$home"/.new.*
new=$home/.new.$$
trap 'rm -rf "$new"' EXIT
mkdir -m 700 "$new"

# Bring it here: plain files and folders only, and none that leads elsewhere.
"$python" -I - "${payload:-$(dirname "$0")}" "$new/payload" "$sha256" <<'PYTHON' || exit 1
import hashlib, os, re, shutil, sys, tarfile

source, target, sha256 = sys.argv[1:]
try:
    if sha256:
        if os.path.isdir(source):
            raise ValueError("--sha256 is that of a file: name it with --payload")
        with open(source, "rb") as content:
            digest = hashlib.sha256()
            while piece := content.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != sha256.lower():
            raise ValueError(f"its sha256 is {digest.hexdigest()}, not {sha256}")
    os.mkdir(target)
    if os.path.isdir(source):
        with open(os.path.join(source, "MANIFEST"), encoding="ascii") as lines:
            names = ["MANIFEST", "MANIFEST.sig", *(line[66:].rstrip("\n") for line in lines)]
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{name!r} leads elsewhere")
            os.makedirs(os.path.dirname(os.path.join(target, name)), exist_ok=True)
            shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
    else:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                name = member.name
                if name.startswith("/") or ".." in name.split("/") or not (member.isreg() or member.isdir()):
                    raise ValueError(f"{name!r} does not belong in a payload")
                path = os.path.join(target, name)
                if member.isdir():
                    os.makedirs(path, exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file)
    found = {
        os.path.relpath(os.path.join(folder, name), target)
        for folder, _, names in os.walk(target)
        for name in names
    }
    with open(os.path.join(target, "MANIFEST"), encoding="ascii") as lines:
        listed = dict(reversed(re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line).groups()) for line in lines)
    if found != {*listed, "MANIFEST", "MANIFEST.sig"}:
        raise ValueError("its files are not those of its list")
    for name, wanted in listed.items():
        with open(os.path.join(target, name), "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != wanted:
                raise ValueError(f"{name} is not as its list says")
except Exception as error:  # tar, lzma and zlib have errors of their own
    sys.exit(f"error: {source} is no whole payload: {error}\n  hint: copy it again")
PYTHON

# The list is signed by a key that this device trusts, or the file is the one whose sha256 was given.
if [ -z "$sha256" ]; then
  command -v openssl >/dev/null ||
    fail "the signature cannot be checked: there is no openssl" "give the file's --sha256, as \`lichen fleet bundle\` said it"
  mkdir "$new/keys"
  "$python" -I - "$toml" "$new/keys" <<'PYTHON' || exit 1
import base64, sys, tomllib

with open(sys.argv[1], "rb") as file:
    try:
        keys = tomllib.load(file).get("trusted_keys", [])
    except (ValueError, UnicodeDecodeError) as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")
if not keys:
    sys.exit(f"error: {sys.argv[1]} trusts no key\n  hint: give the file's --sha256")
for number, key in enumerate(keys):
    # RFC 8410: an Ed25519 key as OpenSSL reads it.
    raw = bytes.fromhex("302a300506032b6570032100" + key.removeprefix("ed25519:"))
    with open(f"{sys.argv[2]}/{number}.pem", "w") as file:
        file.write(f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(raw).decode()}\n-----END PUBLIC KEY-----\n")
PYTHON
  { printf 'fl1/payload\000' && cat "$new/payload/MANIFEST"; } >"$new/signed"
  holds=no
  for key in "$new"/keys/*.pem; do
    if openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in "$new/signed" \
      -sigfile "$new/payload/MANIFEST.sig" >/dev/null 2>&1; then
      holds=yes
    fi
  done
  [ "$holds" = yes ] || fail "the payload is not signed by a key that $toml trusts" "make it with that fleet: lichen fleet bundle --fleet DIR"
fi

# From here on it may be run.
chmod 755 "$new/payload" "$new/payload/lichen-agent" "$new/payload/install.sh"
"$python" -I - "$new/payload/lichen-payload.json" "$(uname -m)" "$root" <<'PYTHON' || exit 1
import importlib.util, json, sys

with open(sys.argv[1], "rb") as file:
    about = json.load(file)
_, machine, root = sys.argv[1:]
python = f"{sys.version_info[0]}.{sys.version_info[1]}"
if not root:
    # A 64-bit kernel may run a 32-bit system, as Raspberry Pi OS of 32 bits does.
    if about["arch"] != machine and not (about["arch"] == "armv7l" and machine in ("aarch64", "armv8l")):
        sys.exit(f"error: the payload is for {about['arch']}, and this device is {machine}")
    if about["arch"] == "aarch64" and sys.maxsize < 1 << 32:
        sys.exit("error: the payload is for aarch64, and this system has 32 bits\n  hint: --arch armv7l")
    if python not in about["pythons"]:
        sys.exit(
            f"error: the payload is for Python {', '.join(about['pythons'])}, and this device has {python}\n"
            f"  hint: lichen fleet bundle --python {python}"
        )
    missing = [name for name in about["debian"] if not importlib.util.find_spec(name.removeprefix("python3-"))]
    if missing:
        sys.exit(f"error: this payload needs {', '.join(missing)}\n  hint: apt-get install {' '.join(missing)}")
PYTHON
if [ -z "$root" ]; then
  "$python" -I "$new/payload/lichen-agent" --help >/dev/null || fail "the agent does not start on this device"
fi
# The service may not write there: without these every start would compile all of it again.
own=$("$python" -I -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
"$python" -I -m compileall -q "$new/payload/lib/python3" "$new/payload/lib/$own" >/dev/null 2>&1 || :

# Its user, where there are users: a trial below an empty folder has none, and one who is not root makes none.
gid=''
if [ "$(id -u)" = 0 ] && [ -f "$root/etc/passwd" ]; then
  grep -q '^lichen:' "$root/etc/group" || groupadd ${root:+--prefix "$root"} --system lichen
  grep -q '^lichen:' "$root/etc/passwd" ||
    useradd ${root:+--prefix "$root"} --system --gid lichen --no-create-home --home-dir /var/lib/lichen \
      --shell /usr/sbin/nologin lichen
  gid=$(sed -n 's/^lichen:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/group")
fi

own_secret() { # the service reads it, nobody else
  [ -z "$gid" ] || chown "0:$gid" "$1"
  chmod "$2" "$1"
}
if [ -n "$config" ]; then
  mkdir -p "$etc"
  own_secret "$etc" 750
  for file in "$config"/agent.toml "$config"/*.pem "$config"/*.key; do
    [ -f "$file" ] || continue
    name=${file##*/}
    (umask 077 && cp "$file" "$etc/.$name.new")
    # Beside a configuration that is read-only to the service, its state cannot be.
    case $name in agent.toml) sed -i 's|^state = "state"$|state = "/var/lib/lichen"|' "$etc/.$name.new" ;; esac
    own_secret "$etc/.$name.new" 640
    mv -f "$etc/.$name.new" "$etc/$name"
  done
fi

id=$("$python" -I -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:12])' "$new/payload/MANIFEST")
old=$(readlink "$home/current" || :)
place=payload-$id
# The same again goes beside the one that runs: it is put in place to mend that, too.
while [ -e "$home/$place" ]; do place=$place.; done
sync
mv "$new/payload" "$home/$place"
cp "$home/$place/lichen-agent.service" "$units/.lichen-agent.service.new"
mv -f "$units/.lichen-agent.service.new" "$units/lichen-agent.service"
mkdir -p "$units/multi-user.target.wants"
ln -sfn ../lichen-agent.service "$units/multi-user.target.wants/lichen-agent.service"
sync
ln -sfn "$place" "$home/.current.new"
mv -fT "$home/.current.new" "$home/current"
sync
# The one before stays, to go back to.
for there in "$home"/payload-*; do
  case ${there##*/} in "$place" | "$old") ;; *) rm -rf "$there" ;; esac
done

echo "Lichen is in $home/$place, its configuration in $etc"
[ -z "$root" ] || exit 0
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  if [ "$start" = yes ]; then
    systemctl restart --no-block lichen-agent.service
    echo "it is starting: journalctl -fu lichen-agent; is all well: sudo -u lichen $home/current/lichen-agent check --config /etc/lichen/agent.toml"
  fi
else
  echo "there is no systemd here: run $home/current/lichen-agent run --config /etc/lichen/agent.toml as user lichen"
fi
