# What a guest of `cargo xtask vm` does: it says what the agent can do here, and runs every test of /plan in a process of its
# own. Lines that begin with @ are read by guest.rs.
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
