#!/bin/sh
# init of a Bochs host. The first serial port takes the kernel's messages and the job's errors, the second what the job
# prints, between two lines of this script.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /tmp /run
mount -t tmpfs tmpfs /dev/shm

finish() {
    echo "testbed: $*" >&3
    # Waits until all has been sent: a serial port takes seconds for what it holds.
    stty -F /dev/ttyS1 raw
    stty -F /dev/ttyS0 raw
    poweroff -f
}

exec </dev/null >/dev/ttyS0 2>&1 3>/dev/ttyS1
stty -F /dev/ttyS1 raw # no carriage returns
for module in $(cat /modules/order); do
    options=
    # Bochs is true to the processor only with accessed and dirty bits in the EPT.
    [ "$module" = kvm_intel ] && options=eptad=1
    insmod "/modules/$module.ko" $options || finish "module $module can't be loaded"
done
[ "$(cat /sys/module/kvm_intel/parameters/eptad)" = Y ] || finish "kvm_intel does not use EPT with its accessed bits"
echo 0 >/sys/module/kvm/parameters/halt_poll_ns

ip link set lo up
read -r up rest </proc/uptime
echo "testbed: up after $up s of its own time" >&3
cd /job
sh ./script >&3 3>&-
finish "the job ended with $?"
