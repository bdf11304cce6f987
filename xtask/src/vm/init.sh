#!/bin/busybox sh
# The first process of a guest: mounts what the tests look at, does what /bin/work says, and powers off. Lines that begin with
# @ are for xtask.
export PATH=/bin HOME=/ TMPDIR=/tmp SISKIN_BIN=/siskin RUST_BACKTRACE=0
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
stty -F $SAYS -opost
exec </dev/null >$SAYS 2>&1

. /bin/work
echo "@end"
sync
poweroff -f
