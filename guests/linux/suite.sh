#!/bin/busybox sh
# The init of a Linux guest that tries what a machine over several hosts must do. It runs three times: the first boot
# ends with a reboot, the second with a panic, and the third when a host is taken away. The kernel hands over words of
# its command line that it does not know: what the programs are given, and in LATER the modules that are loaded last.
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do
    case " ${LATER//,/ } " in
    *" $module "*) ;;
    *) busybox insmod "/modules/$module.ko" || echo "FAILED: insmod $module" ;;
    esac
done
# Those that the command line has kept back until here.
for online in /sys/devices/system/cpu/cpu*/online; do
    [ "$(cat "$online")" = 1 ] || echo 1 >"$online"
done
cpus=$(busybox nproc --all)

say() {
    echo "suite: $*"
}

# Runs a program whose arguments are words with commas between, and says how it ended.
try() {
    name=$1 arguments=$2
    "$name" "$cpus" ${arguments//,/ } && say "$name ok" || say "$name FAILED"
}

sum() {
    busybox sha256sum "$@" | busybox cut -d ' ' -f 1
}

forget() {
    echo 3 >/proc/sys/vm/drop_caches
}

# Linux patches its own code for a module, which all processors must see.
modules() {
    last=$((cpus - 1))
    for module in ${LATER//,/ }; do
        busybox taskset -c "$last" busybox insmod "/modules/$module.ko" || return 1
        busybox grep -q "^$module .* Live " /proc/modules || return 1
        busybox taskset -c 0 busybox rmmod "$module" || return 1
    done
}

copy() {
    busybox dd if=/dev/urandom of=/mnt/file bs=64k count=16 2>/dev/null
    cp /mnt/file /mnt/copy && sync && forget
    sum /mnt/file >/mnt/sum
    [ "$(sum /mnt/copy)" = "$(cat /mnt/sum)" ]
}

hotplug() {
    for cpu in $(busybox seq 1 $((cpus - 1))); do
        online=/sys/devices/system/cpu/cpu$cpu/online
        echo 0 >"$online" && [ "$(cat "$online")" = 0 ] || return 1
        busybox grep -q "^processor.*: $cpu\$" /proc/cpuinfo && return 1
        echo 1 >"$online" && [ "$(cat "$online")" = 1 ] || return 1
        busybox taskset -c "$cpu" busybox grep -q "^processor.*: $cpu\$" /proc/cpuinfo || return 1
    done
}

network() {
    ip link set lo up
    ip address add 198.18.7.2/24 dev eth0
    ip link set eth0 up
    # ping waits no more than a second of the guest for the answer to its last packet.
    busybox ping -A -c 4 -W 20 198.18.7.1 | busybox grep -q "[34] packets received" && say "ping ok"
    say "http $(busybox wget -q -O - http://198.18.7.1/file | sum)"
}

clock() {
    say "clocksource $1 $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
}

first() {
    clock before
    say "cpus $(cat /sys/devices/system/cpu/online)"
    try worker "$WORKER"
    try storm "$STORM"
    try futex "$FUTEX"
    try churn "$CHURN"
    busybox mkswap /dev/vdb >/dev/null && busybox swapon /dev/vdb || say "swapon FAILED"
    try pages "$PAGES"
    busybox swapoff /dev/vdb
    modules && say "modules ok" || say "modules FAILED"
    copy && say "copy ok" || say "copy FAILED"
    network
    hotplug && say "hotplug ok" || say "hotplug FAILED"
    # What the kernel says goes to the console again.
    busybox dmesg -n 8
    echo l >/proc/sysrq-trigger
    busybox dmesg -n 4
    clock after
    say "reboot"
    busybox umount /mnt
    busybox reboot -f
}

second() {
    forget
    [ "$(sum /mnt/copy)" = "$(cat /mnt/sum)" ] && say "the copy is as it was before the reboot"
    busybox umount /mnt
    say "panic"
    echo c >/proc/sysrq-trigger
}

third() {
    for cpu in $(busybox seq 1 $((cpus - 1))); do
        busybox taskset -c "$cpu" busybox sh -c 'while true; do /bin/true; done' &
    done
    say "at work until the end"
    while true; do /bin/true; done
}

busybox mount -t ext4 /dev/vda /mnt || say "vda FAILED"
boot=$(($(cat /mnt/boot 2>/dev/null || echo 0) + 1))
echo "$boot" >/mnt/boot
sync
say "boot $boot"
case $boot in
1) first ;;
2) second ;;
*) third ;;
esac
