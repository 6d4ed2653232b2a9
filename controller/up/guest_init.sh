#!/bin/busybox sh
# The first process of a demo guest: inserts the virtio drivers, says that it is ready, then makes
# the load that its kernel command line names, for ever. It must outlive being under-ballooned, so
# every byte that it holds lies in child processes and it grows only into memory that is there.

/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /dev
mount -t proc proc /proc
mount -t devtmpfs dev /dev

# Defaults of the parameters; `hrapaq.NAME=VALUE` on the command line replaces them.
load=idle         # memory | cpu | disk | idle | probe
start_s=0         # waits so long before the first step
period_s=120      # one step up and one down
busy_s=60         # how much of a period is the step up
low_mib=40        # memory: held during the step down
high_mib=240      # memory: held during the step up
cache_mib=32      # memory: read from the disk at each step, so that there is a page cache
busy_percent=35   # cpu: of the one virtual CPU, during the step up
rest_percent=3    # cpu: likewise during the step down
rate_mib=4        # disk: written per second during the step up
disk_mib=64       # disk: the size of /dev/vda; writing wraps around at its end
for word in $(cat /proc/cmdline); do
    case $word in
    hrapaq.*=*)
        word=${word#hrapaq.}
        eval "${word%%=*}='${word#*=}'"
        ;;
    esac
done

for module in $(cat /modules/order); do
    insmod "/modules/$module"
done

say() { echo "hrapaq-$load $(cut -d' ' -f1 /proc/uptime) $*"; }

available_mib() {
    while read -r name value _; do
        [ "$name" = MemAvailable: ] && echo $((value / 1024)) && return
    done </proc/meminfo
}

# --- memory: blocks of 8 MiB, each the buffer of a dd that waits to write it ---------------------
block_mib=8
spare_mib=24 # stays available to the guest; below it, growth waits for the balloon
blocks=

hold() { # hold MIB SECONDS: steps to MIB, then keeps it until SECONDS are over
    end=$(($(cut -d. -f1 /proc/uptime) + $2))
    say "wants $1 MiB"
    [ -b /dev/vda ] && dd if=/dev/vda of=/dev/null bs=1M count="$cache_mib" 2>/dev/null
    while [ "$(cut -d. -f1 /proc/uptime)" -lt "$end" ]; do
        alive=
        held_mib=0
        for block in $blocks; do
            if [ "$held_mib" -ge "$1" ]; then
                kill -9 "$block" 2>/dev/null
            elif kill -0 "$block" 2>/dev/null; then
                alive="$alive $block"
                held_mib=$((held_mib + block_mib))
            fi
        done
        blocks=$alive
        if [ "$held_mib" -lt "$1" ] && [ "$(available_mib)" -gt $((block_mib + spare_mib)) ]; then
            dd if=/dev/zero bs=${block_mib}M count=1 2>/dev/null >&9 &
            blocks="$blocks $!"
            sleep 0.3
        else
            sleep 1
        fi
    done
}

run_memory() {
    mkfifo /held # opened by us and never read: who writes to it waits, and keeps its buffer
    exec 9<>/held
    [ -b /dev/vda ] && exec 8</dev/vda # while it is open, what was read from it stays cached
    while :; do
        hold "$low_mib" $((period_s - busy_s))
        hold "$high_mib" "$busy_s"
    done
}

# --- cpu: one endless loop, stopped and continued within every second ----------------------------
burn() { # burn PERCENT SECONDS
    say "burns $1 percent"
    for _ in $(seq "$2"); do
        kill -CONT "$burner"
        usleep $(($1 * 10000))
        kill -STOP "$burner"
        usleep $(((100 - $1) * 10000))
    done
}

run_cpu() {
    while :; do :; done &
    burner=$!
    kill -STOP "$burner"
    while :; do
        burn "$rest_percent" $((period_s - busy_s))
        burn "$busy_percent" "$busy_s"
    done
}

# --- disk: direct writes to the same few blocks, so that the host's file never grows -------------
run_disk() {
    at_mib=0
    while :; do
        say "rests"
        sleep $((period_s - busy_s))
        say "writes $rate_mib MiB a second"
        for _ in $(seq "$busy_s"); do
            [ $((at_mib + rate_mib)) -gt "$disk_mib" ] && at_mib=0
            dd if=/dev/zero of=/dev/vda bs=1M seek=$at_mib count="$rate_mib" oflag=direct \
                conv=notrunc 2>/dev/null
            at_mib=$((at_mib + rate_mib))
            sleep 1
        done
    done
}

say ready
[ "$load" = probe ] && poweroff -f
sleep "$start_s"
case $load in
memory) run_memory ;;
cpu) run_cpu ;;
disk) run_disk ;;
esac
while :; do sleep 3600; done
