#!/bin/sh
# Runs in the guest at every boot of run.sh: the project's tree is in /srv/payload, and /srv/payload/.guest-run/ says what to
# do: `mode` is tests or shell, `command` the shell's command, `arguments` a `set` of pytest's arguments, `seconds` how long
# after its start the machine is switched off.
set -eu
project=/srv/payload
cd "$project"
. tests/guest/stream.sh
trap 'code=$?; [ -e "$RESULTS/exit-code" ] || finish "$code"' EXIT

# What is emulated may take as much longer.
[ "$(systemd-detect-virt)" = kvm ] || export CAPPROFILE_TESTS_SLOWER=10
# The nodes of loop devices appear when the module is loaded, which the first use of /dev/loop-control does: too late for a
# container that has its nodes by then.
modprobe loop
wait_for_docker
ln -sfn /opt/venv .venv
export PATH="$project/.venv/bin:$PATH" CAPPROFILE_REQUIRE_ENGINE=1
mode=$(cat .guest-run/mode)
. .guest-run/arguments
code=0
case $mode in
    shell)
        sh .guest-run/command >&3 2>&1 < /dev/null || code=$?
        ;;
    tests)
        say 'tests are running'
        # pyproject.toml's time for a test is a real machine's
        set -- --override-ini="timeout=$((120 * ${CAPPROFILE_TESTS_SLOWER:-1}))" "$@"
        left=$(($(cat .guest-run/seconds) - $(cut -d . -f 1 /proc/uptime) - 60))
        # SIGINT lets pytest tell what was done until then.
        set -- timeout --signal=INT --kill-after=40 "$((left > 1 ? left : 1))" .venv/bin/python -m pytest "$@"
        # The pipe's first command gives the code, which only a file can carry out of it in this shell.
        {
            "$@" --color=no --junit-xml="$RESULTS/junit.xml" 2>&1 < /dev/null || code=$?
            echo "$code" > /run/pytest-code
        } | tee "$RESULTS/pytest.log" >&3
        code=$(cat /run/pytest-code)
        ;;
esac
finish "$code"
