/**
 * Shell scripts that make the root file systems. Each runs in mount and PID namespaces of its own, so that nothing stays
 * mounted whatever happens; all work is done in temp folders and published by rename.
 */

/** $1 target folder, $2 mirror, $3 suite, $4 cache folder. Makes the minimal base, as a slim image has it. */
export const BASE_SCRIPT = `
target=$1 mirror=$2 suite=$3 cache=$4
mkdir -p "$cache/debs"
debootstrap --variant=minbase --cache-dir="$cache/debs" "$suite" "$target" "$mirror" >"$target.log" 2>&1 || {
  tail -n 20 "$target.log" >&2; exit 1; }
rm -f "$target.log"
cd "$target"
rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* var/log/* usr/share/man/* usr/share/info/* usr/share/locale/*
find usr/share/doc -mindepth 2 -not -type d -not -name copyright -delete
find usr/share/doc -depth -type d -empty -delete
printf 'path-exclude /usr/share/doc/*\\npath-include /usr/share/doc/*/copyright\\npath-exclude /usr/share/man/*\\npath-exclude /usr/share/info/*\\npath-exclude /usr/share/locale/*\\nforce-unsafe-io\\n' >etc/dpkg/dpkg.cfg.d/slim
printf '#!/bin/sh\\nexit 101\\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
: >etc/resolv.conf
: >etc/hostname
`;

/**
 * $1 base folder, $2 work folder, $3 apt options file, $4 cache folder, $5 packages, $6 setup commands. Leaves the second
 * layer in `$2/upper`, in the form of an OCI layer (whiteouts as `.wh.` files).
 */
export const PACKAGES_SCRIPT = `
base=$1 work=$2 options=$3 cache=$4 packages=$5 setup=$6
mkdir -p "$work/upper" "$work/work" "$work/merged" "$cache/archives/partial" "$cache/lists/partial"
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work,redirect_dir=off,metacopy=off" overlay "$work/merged"
root=$work/merged
mount -t proc proc "$root/proc"
mount --bind "$cache/archives" "$root/var/cache/apt/archives"
mount --bind "$cache/lists" "$root/var/lib/apt/lists"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
cp "$options" "$root/etc/apt/apt.conf.d/00build"
in_root() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }
if [ -z "$(find "$cache/lists" -maxdepth 1 -name '*Packages*' -mmin -600)" ]; then in_root apt-get -q update; fi
# Some packages link manual pages although a slim image has no folder for them.
mkdir -p "$root/usr/share/man/man1"
# shellcheck disable=SC2086
in_root apt-get -q -y install --no-install-recommends $packages
if [ -n "$setup" ]; then in_root sh -euc "$setup"; fi
rm -f "$root/etc/apt/apt.conf.d/00build"
umount "$root/etc/resolv.conf" "$root/var/lib/apt/lists" "$root/var/cache/apt/archives" "$root/proc"
umount "$root"
cd "$work/upper"
rm -rf var/cache/apt/*.bin var/log/apt var/log/*.log var/cache/ldconfig/aux-cache var/lib/dpkg/*-old var/cache/debconf/*-old
find . -type c | while IFS= read -r path; do
  if [ "$(stat -c %t:%T "$path")" = 0:0 ]; then rm "$path"; : >"\${path%/*}/.wh.\${path##*/}"; fi
done
getfattr -R -h --absolute-names -m '^trusted\\.overlay\\.opaque$' . 2>/dev/null | sed -n 's/^# file: //p' | while IFS= read -r path; do
  : >"$path/.wh..wh..opq"
done
`;

/** $1 folder, $2 tar file to write. The tar is the same whenever the folder is. */
export const TAR_SCRIPT = `
cd "$1"
tar --create --file="$2" --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \\
  --sort=name --numeric-owner --xattrs --xattrs-include='*' --xattrs-exclude='trusted.overlay.*' --no-acls --no-selinux .
`;
