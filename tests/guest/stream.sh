# How the guest talks to the host. Sourced by what runs inside.
# shellcheck shell=sh
exec 3> /dev/virtio-ports/capprofile # boot.sh copies this to its own standard output; only one open at a time is allowed
RESULTS=/run/results                # goes out as a tar archive on the results disk
mkdir -p "$RESULTS"

say() { echo "guest: $* ($(cut -d ' ' -f 1 /proc/uptime) s after boot)" >&3; }

# finish CODE: hand out the results and the exit code. The unit powers off afterwards.
finish() {
    echo "$1" > "$RESULTS/exit-code"
    journalctl --dmesg --no-pager --quiet > "$RESULTS/kernel.log" 2>&1 || true
    tar --create --file=/dev/disk/by-id/virtio-results -C "$RESULTS" .
    sync
}

# wait_for_docker: until the engine answers, for 180 seconds at most
wait_for_docker() {
    deadline=$(($(cut -d . -f 1 /proc/uptime) + 180))
    until docker info > /run/docker-info 2>&1; do
        if [ "$(cut -d . -f 1 /proc/uptime)" -ge "$deadline" ]; then
            say 'the Docker engine did not come up'
            systemctl --no-pager --full status docker.service >&3 2>&1 || true
            finish 3
            exit 1
        fi
        sleep 0.3
    done
    say "docker $(docker version --format '{{.Server.Version}}') is up on Linux $(uname -r)"
}
