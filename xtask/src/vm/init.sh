#!/bin/busybox sh
# The first process of a guest: mounts what the tests look at, says what the agent can do here, runs every test of /plan in
# a process of its own, and powers off. Lines that begin with @ are for `cargo xtask vm` (guest.rs).
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

echo "@up $(cut -d' ' -f1 /proc/uptime)"
timeout -s KILL "$SURVEY_SECONDS" /survey >/survey.out 2>/out || cat /out
sed 's/^/@/' /survey.out
have=" $(sed -n 's/^have //p' /survey.out | tr '\n' ' ') "

# Each line: what the test needs, separated by commas; its binary; its name.
while read -r needs binary name; do
    lacks=
    for need in $(echo "$needs" | tr ',' ' '); do
        case $have in *" $need "*) ;; *) lacks="$lacks $need" ;; esac
    done
    if [ -n "$lacks" ]; then
        echo "@unsupported $name$lacks"
        continue
    fi
    echo "@test $name"
    timeout -s KILL "$TEST_SECONDS" "$binary" --exact "${name#*::}" --include-ignored --test-threads=1 >/out 2>&1
    status=$?
    # Exit status 0 is also that of a binary that has no such test.
    if [ $status = 0 ] && grep -q '^test result: ok. 1 passed' /out; then
        echo "@passed $name"
    else
        cat /out
        echo "@failed $name $status"
        # A test that was killed left them behind.
        killall -q -KILL siskin load
    fi
done </plan
echo "@end"
sync
poweroff -f
