#!/bin/sh
# L0's libvirt, apart from the machine's own: run as the first process of a PID namespace of its own
# with its own places mounted over the usual ones. Whatever ends it ends all its VMs with it; libvirtd
# alone may be killed and comes back, as under systemd.
#   hypervisor.sh RUN_DIRECTORY STATE_DIRECTORY CACHE_DIRECTORY
set -eu
run=$1 state=$2 cache=$3
export PATH="$PATH:/usr/sbin:/sbin"

over() { # over SOURCE TARGET
    mkdir -p "$1" "$2"
    mount --bind "$1" "$2"
}
over "$run/libvirt" /run/libvirt
over "$state/libvirt/lib" /var/lib/libvirt
over "$state/libvirt/log" /var/log/libvirt
over "$state/libvirt/etc" /etc/libvirt
over "$cache" /var/cache/libvirt
# Without systemd's machine registry, which knows nothing of our process numbers.
if [ -d /run/dbus ]; then mount -t tmpfs none /run/dbus; fi

cat >/etc/libvirt/libvirtd.conf <<END
auth_unix_rw = "none"
auth_unix_ro = "none"
END
cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
stdio_handler = "file"
END
while :; do
    libvirtd --pid-file "$run/libvirtd.pid" --config /etc/libvirt/libvirtd.conf || true
    sleep 0.5
done
