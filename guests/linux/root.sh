#!/bin/busybox sh
# The init of an initramfs that goes on with the system on the first disk, once all processors run.
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do
    busybox insmod "/modules/$module.ko"
done
for online in /sys/devices/system/cpu/cpu*/online; do
    [ "$(cat "$online")" = 1 ] || echo 1 >"$online"
done
busybox mount -t ext4 -o noatime /dev/vda /root
for place in proc sys dev; do
    busybox mount --move "/$place" "/root/$place"
done
echo "root: init starts"
exec busybox switch_root /root /sbin/init
