#!/bin/sh
# init of a testbed host. The kernel hands over what it does not know itself on its command line:
# HOST_INDEX, HOST_COUNT, PYTHON and MODULES (paths on the outer machine).
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

fail() {
    echo "testbed: host $HOST_INDEX: $*"
    poweroff -f
}

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || fail "module $module can't be loaded"
done

# The outer machine's files, to be changed without the outer machine seeing it.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro outer /lower ||
    fail "the outer root can't be mounted"
mount -t tmpfs tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root ||
    fail "the root can't be made writable"
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --rbind /dev /root/dev
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t tmpfs tmpfs /root/run
mkdir -p /root/usr/lib/modules
ln -s "$MODULES" /root/usr/lib/modules/

# A vCPU that halts gives its processor up at once: there is only one.
echo 0 >/sys/module/kvm/parameters/halt_poll_ns

hostname "h$HOST_INDEX"
host=0
echo "127.0.0.1 localhost" >/root/etc/hosts
while [ "$host" -lt "$HOST_COUNT" ]; do
    echo "10.0.0.$((host + 1)) h$host" >>/root/etc/hosts
    host=$((host + 1))
done
ip link set lo up
for device in /sys/class/net/e*; do
    ip address add "10.0.0.$((HOST_INDEX + 1))/24" dev "${device##*/}"
    ip link set "${device##*/}" up
done

cp /agent.py /root/run/testbed-agent.py
chroot /root "$PYTHON" -I -S /run/testbed-agent.py
fail "the agent ended with status $?"
