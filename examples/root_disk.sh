#!/bin/sh
# Makes a root disk for a virtual machine of Debian packages: sudo sh examples/root_disk.sh IMAGE [MIB [SUITE]]
#
# A raw ext4 file system with systemd, a login for root without a password on the serial port, and the network by
# systemd-networkd. Needs the Debian packages debootstrap and e2fsprogs, and no loop device.
set -eu
image=${1:?"usage: root_disk.sh IMAGE [MIB [SUITE]]"}
mib=${2:-640}
suite=${3:-bookworm}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

debootstrap --variant=minbase --include=systemd-sysv,udev,dbus,login,iproute2,iputils-ping,procps,util-linux,kmod \
    "$suite" "$tree"
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*

echo giantvm >"$tree/etc/hostname"
echo "/dev/vda / ext4 defaults,noatime 0 1" >"$tree/etc/fstab"
# Root logs in on the serial port without a password.
sed -i 's/^root:[^:]*:/root::/' "$tree/etc/shadow"
cat >"$tree/etc/systemd/network/10-all.network" <<END
[Match]
Name=e*
[Network]
DHCP=yes
END
# A login on the console, which waits for no device: over slow hosts udev comes late.
chroot "$tree" systemctl enable --quiet systemd-networkd console-getty
# Timers that look after disks and packages, and screens that are not there.
chroot "$tree" systemctl mask --quiet apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-logind.service
mkdir -p "$tree/etc/systemd/system.conf.d"
cat >"$tree/etc/systemd/system.conf.d/slow.conf" <<END
[Manager]
DefaultTimeoutStartSec=30min
DefaultDeviceTimeoutSec=30min
END

rm -f "$image"
truncate -s "${mib}M" "$image"
mke2fs -q -t ext4 -L root -d "$tree" "$image"
echo "$image: $suite, $mib MiB"
