#!/bin/busybox sh
# The first process of a guest whose levers are tested: one tmpfs for memory in use, one network
# interface over which it takes what comes and sends what it can.

/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /dev /held
mount -t proc proc /proc
mount -t devtmpfs dev /dev

hold_mib=0  # memory in use
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

echo "ready"
if [ "$hold_mib" -gt 0 ]; then
    sleep 2 # until the memory that is plugged at the start is there
    mount -t tmpfs -o size="${hold_mib}m" held /held
    dd if=/dev/zero of=/held/block bs=1M count="$hold_mib" 2>/dev/null
    echo "holds"
fi
[ "$spin" = 1 ] && while :; do :; done
while :; do sleep 3600; done
