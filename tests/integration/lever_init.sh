#!/bin/busybox sh
# The first process of a guest whose levers are tested: one tmpfs for memory in use, one network
# interface over which it takes what comes and sends what it can, one disk that it writes.

/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /dev /held
mount -t proc proc /proc
mount -t devtmpfs dev /dev

hold_mib=0  # memory in use
taken_mib=0 # not before it was left with less than this, and has room for it again
without=    # a driver that is not inserted
spin=0      # 1: an endless loop
for word in $(cat /proc/cmdline); do
    case $word in
    hrapaq.*=*)
        word=${word#hrapaq.}
        eval "${word%%=*}='${word#*=}'"
        ;;
    esac
done

for module in $(cat /modules/order); do
    [ "$module" = "$without.ko" ] || insmod "/modules/$module"
done

if ip addr add 192.0.2.2/30 dev eth0 2>/dev/null; then
    ip link set eth0 up
    (while :; do nc -l -p 9000 >/dev/null; done) &
    (while :; do nc 192.0.2.1 9001 </dev/zero 2>/dev/null; sleep 1; done) &
fi
if [ -b /dev/vda ]; then
    (while :; do
        dd if=/dev/zero of=/dev/vda bs=1M count=8 oflag=direct conv=notrunc 2>/dev/null
    done) &
fi

mib() { # mib NAME: of /proc/meminfo
    while read -r name value _; do
        [ "$name" = "$1:" ] && echo $((value / 1024)) && return
    done </proc/meminfo
}

echo "ready"
if [ "$hold_mib" -gt 0 ]; then
    if [ "$taken_mib" -gt 0 ]; then
        while [ "$(mib MemTotal)" -ge "$taken_mib" ]; do sleep 0.2; done
        echo "shrunk"
    fi
    # The memory that is plugged at the start takes a moment, and so does what is given back.
    while [ "$(mib MemAvailable)" -lt $((hold_mib + 16)) ]; do sleep 0.2; done
    mount -t tmpfs -o size="${hold_mib}m" held /held
    dd if=/dev/zero of=/held/block bs=1M count="$hold_mib" 2>/dev/null
    echo "holds"
fi
[ "$spin" = 1 ] && while :; do :; done
while :; do sleep 3600; done
