#!/bin/sh
# Makes this machine ready to run and to test Kindling: Debian packages, npm packages, Node 24. Safe to run again: what is
# there already is left alone, and a second run takes about a second. `sh infra/setup.sh --packages` stops before npm.
set -eu

# What the node itself needs, then what the tests and the demo need.
PACKAGES="ca-certificates fuse iproute2 erofs-utils containerd runc
docker-registry nats-server redis-server debootstrap skopeo umoci buildah podman stargz-snapshotter
zstd pigz attr acl libcap2-bin e2fsprogs procps util-linux containernetworking-plugins python3-minimal"

POLICY=/usr/sbin/policy-rc.d
LOCK=/run/lock/kindling-setup.lock
policy_is_ours=no

say() { echo "setup: $*"; }
fail() {
  echo "setup: $*" >&2
  exit 1
}
cleanup() {
  if [ "$policy_is_ours" = yes ]; then rm -f "$POLICY"; fi
}
log=$(mktemp)
trap 'cleanup; rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cd "$(dirname "$0")/.."

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

missing_packages() {
  for package in $PACKAGES; do
    # fuse3 replaces fuse and serves as well: never remove it from a machine that has it.
    if [ "$package" = fuse ] && is_installed fuse3; then continue; fi
    # A machine may have Docker's own containerd or runc (packages of another name): the program counts.
    case $package in containerd | runc) command -v "$package" >/dev/null 2>&1 && continue ;; esac
    is_installed "$package" || printf '%s ' "$package"
  done
}

install_packages() {
  command -v dpkg-query >/dev/null 2>&1 || fail "this is not a Debian-like system (no dpkg); install these by hand: $PACKAGES"
  missing=$(missing_packages)
  if [ -z "$missing" ]; then
    say "Debian packages: all there"
    return
  fi
  [ "$(id -u)" = 0 ] || fail "these packages are missing and only root can install them: $missing
setup: run this as root, or: sudo apt-get install --no-install-recommends $missing"
  say "Debian packages: installing $missing"
  # Services (containerd, redis, nats, the registry) are started by the tests themselves, on their own ports.
  if [ ! -e "$POLICY" ]; then
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -q -o Acquire::Retries=3 update >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    say "apt-get update failed; trying to go on with the package lists that are here"
  }
  # shellcheck disable=SC2086 # one word per package is meant
  apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    fail "apt-get could not install the packages above"
  }
  cleanup
  policy_is_ours=no
}

# The lock file's checksum, not its time: a checkout touches times.
install_node_modules() {
  stamp=node_modules/.kindling-lock
  sum=$(cksum <package-lock.json)
  if [ ! -e "$stamp" ] && [ -e node_modules/.package-lock.json ] && [ ! package-lock.json -nt node_modules/.package-lock.json ]; then
    echo "$sum" >"$stamp"
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && node_modules/.bin/node --version >/dev/null 2>&1; then
    say "npm packages: up to date"
    return
  fi
  command -v npm >/dev/null 2>&1 || fail "npm is not installed; install Node.js 20 or newer first"
  say "npm packages: npm ci"
  npm ci --include=dev --no-audit --no-fund >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    fail "npm ci failed"
  }
  echo "$sum" >"$stamp"
}

check_kernel() {
  for module in fuse erofs overlay loop; do
    grep -qw "$module" /proc/filesystems || [ -e "/sys/module/$module" ] || modprobe "$module" 2>/dev/null || true
  done
  grep -qw erofs /proc/filesystems || say "warning: this kernel has no EROFS; layers cannot be mounted lazily"
  [ -e /dev/fuse ] || say "warning: there is no /dev/fuse; layers cannot be mounted lazily"
}

# Two set-ups at once (two checkouts, a demo beside a test run) would trip over apt and policy-rc.d.
if command -v flock >/dev/null 2>&1 && mkdir -p /run/lock 2>/dev/null && : 2>/dev/null >>"$LOCK"; then
  exec 9>>"$LOCK"
  flock -w 900 9 || fail "another set-up has been running for 15 minutes (lock: $LOCK)"
fi

install_packages
if [ "${1:-}" = --packages ]; then exit 0; fi
install_node_modules
check_kernel
say "ready: node $(node_modules/.bin/node --version), kernel $(uname -r)"
