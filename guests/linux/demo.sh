#!/bin/busybox sh
# The init of the guest of `make demo`: shows the machine, works on it, and gives a shell; the shell's end switches the
# machine off. A line that begins with `$` is a command, and what follows is what it printed.
export PATH=/bin:/usr/bin HOME=/ TERM=linux PS1='guest# '
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(busybox cat /modules/order); do
    busybox insmod "/modules/$module.ko"
done

show() {
    echo
    echo "\$ $*"
    sh -c "$*"
}

echo
echo "== Linux is up"
for online in /sys/devices/system/cpu/cpu*/online; do
    [ "$(cat "$online")" = 1 ] || late="${late}echo 1 >$online; "
done
if [ "$late" ]; then
    show "${late}grep -c ^processor /proc/cpuinfo"
fi

echo
echo "== one machine"
show "uname -sr; cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
show "lscpu | grep -E '^(Arch|CPU|On-line|Model name|Hyper|NUMA)'"
show "grep MemTotal /sys/devices/system/node/node*/meminfo"

echo
echo "== one process on all CPUs"
show "primes $(nproc --all) $LIMIT"

echo
echo "== a disk"
show "mount /dev/vda /mnt && sha256sum /mnt/file"
show "cp /mnt/file /mnt/copy && sync && echo 3 >/proc/sys/vm/drop_caches && sha256sum /mnt/copy"
umount /mnt

echo
echo "== a network"
ip link set lo up
show "ip address add 198.18.7.2/24 dev eth0 && ip link set eth0 up"
show "ping -A -c 4 -W 20 198.18.7.1"
show "wget -q -O - http://198.18.7.1/file | sha256sum"

echo
echo "== a shell"
setsid cttyhack sh
poweroff -f
