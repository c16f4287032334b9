#!/bin/busybox sh
# The init of a Linux guest that uses nearly all of its RAM: processors by turns copy the disk, which is filled by its
# device, into memory, COPIES times; then the other one looks at each copy.
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(busybox cat /modules/order); do
    busybox insmod "/modules/$module.ko" || echo "FAILED: insmod $module"
done
for online in /sys/devices/system/cpu/cpu*/online; do
    [ "$(busybox cat "$online")" = 1 ] || echo 1 >"$online"
done
last=$(($(busybox nproc --all) - 1))
echo "init: kernel $(busybox uname -r)"

on() {
    cpu=$1
    shift
    busybox taskset -c "$cpu" busybox "$@"
}

busybox mount -t tmpfs -o size=100% tmpfs /mnt
for copy in $(busybox seq "$COPIES"); do
    on $((copy % 2 * last)) cp /dev/vda "/mnt/$copy" || echo "FAILED: copy $copy"
    echo 3 >/proc/sys/vm/drop_caches
done
for copy in $(busybox seq "$COPIES"); do
    echo "memory: $copy $(on $(((copy + 1) % 2 * last)) sha256sum "/mnt/$copy" | busybox cut -d ' ' -f 1)"
done
busybox grep -E '^(MemTotal|MemFree|Shmem):' /proc/meminfo
echo "init: power off"
busybox poweroff -f
