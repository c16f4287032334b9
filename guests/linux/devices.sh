#!/bin/busybox sh
# init of a Linux guest that uses its virtio devices: two disks, a network, a console and random numbers. It runs
# twice, with a reboot between, and tells by the first disk which time it is.
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(busybox cat /modules/order); do
    busybox insmod "/modules/$module.ko"
done

say() {
    echo "devices: $*"
}

sum() {
    busybox sha256sum "$@" | busybox cut -d ' ' -f 1
}

forget() {
    echo 3 >/proc/sys/vm/drop_caches
}

busybox mount -t ext4 /dev/vda /mnt || say "vda can't be mounted"
if [ -e /mnt/sum ]; then
    say "second boot"
    [ "$(sum /mnt/file)" = "$(busybox cat /mnt/sum)" ] && say "the file is as it was before the reboot"
    busybox umount /mnt
    say "power off"
    busybox poweroff -f
fi

say "first boot"
for device in /sys/bus/pci/devices/*; do
    say "${device##*/} $(busybox cat "$device/vendor") $(busybox cat "$device/device") $(busybox head -n 1 "$device/resource")"
done
for disk in vda vdb; do
    say "$disk $(busybox cat /sys/block/$disk/serial) $(busybox cat /sys/block/$disk/size) ro $(busybox cat /sys/block/$disk/ro)"
done
say "vdb holds $(sum /dev/vdb)"
busybox dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null && say "vdb was WRITTEN"

busybox dd if=/dev/urandom of=/mnt/file bs=64k count=32 2>/dev/null
busybox sync
written=$(sum /mnt/file)
forget
[ "$(sum /mnt/file)" = "$written" ] && say "the disk gives back what it got"
echo "$written" >/mnt/sum
busybox umount /mnt

busybox ip link set lo up
busybox ip address add 198.18.7.2/24 dev eth0
busybox ip link set eth0 up
say "eth0 $(busybox cat /sys/class/net/eth0/address) queues $(busybox ls /sys/class/net/eth0/queues | busybox grep -c rx)"
# ping waits no more than a second of the guest for the answer to its last packet.
busybox ping -c 6 -W 20 198.18.7.1 | busybox grep -q "[56] packets received" && say "ping works"
say "transfer $(busybox wget -q -O - http://198.18.7.1/file | sum)"

echo "devices: words over hvc0" >/dev/hvc0
say "random numbers from $(busybox cat /sys/class/misc/hw_random/rng_current)"
[ "$(busybox head -c 64 /dev/hwrng | busybox wc -c)" = 64 ] && say "random numbers come"
busybox grep -E 'virtio|CPU' /proc/interrupts
say "reboot"
busybox reboot -f
