#!/bin/sh
# The first process of an L2: a network, our agent, and what takes the testbed's orders.
# Settings come on the kernel's command line: testbed.NAME=VALUE.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755,size=8m tmpfs /run
mount -t tmpfs -o size=16m tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup

for word in $(cat /proc/cmdline); do
    case $word in
    testbed.name=*) hostname "${word#*=}" ;;
    testbed.address=*) address=${word#*=} ;;
    testbed.gateway=*) gateway=${word#*=} ;;
    testbed.bus=*) bus=${word#*=} ;;
    esac
done

ip link set lo up
ip link set eth0 up
ip address add "$address/24" dev eth0
ip route add default via "$gateway"

mkdir -p /etc/hrapaq
cat >/etc/hrapaq/agent.toml <<END
bus_servers = ["$bus"]
controller_address = ""
sample_interval_s = 5.0
role = "guest"
metrics_listen = ""
END

# As systemd would: whatever ends is started again.
keep() {
    name=$1
    shift
    while :; do
        "$@" >>"/run/$name.log" 2>&1 &
        echo $! >"/run/$name.pid"
        wait $!
        sleep 1
    done
}

keep agent /opt/hrapaq/bin/hrapaq-agent guest --config /etc/hrapaq/agent.toml &
export PYTHONPATH=/opt
keep worker python3 -B -m testbed.inside.worker &
while :; do wait; sleep 1; done
