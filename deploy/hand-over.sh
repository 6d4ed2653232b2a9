#!/bin/sh
# Lets the agent set the memory guard of VMs and wait for their pressure, without root: hands the
# files memory.high and *.pressure of a VM's control group to group hrapaq. Run as root
#
#   by libvirt when a VM has started: /etc/libvirt/hooks/qemu.d/hrapaq NAME started begin -
#   by the agent's unit for the VMs that run already: hand-over.sh
#
# Whatever happens here, the VM goes on: libvirt ends a VM whose hook fails.
main() {
    case "${2:-all}" in
    all) for file in /run/libvirt/qemu/*.pid; do hand_over "$file"; done ;;
    started | reconnect | restore) hand_over "/run/libvirt/qemu/$1.pid" ;;
    esac
}

# The VM's own group: what lies below, one for each thread, and above it, systemd's scope, are not.
hand_over() {
    pid=$(cat "$1" 2>/dev/null) || return 0
    group=$(sed -n 's,^0::\(.*/machine[^/]*/machine-qemu[^/]*\.scope\).*,\1,p' "/proc/$pid/cgroup")
    [ -n "$group" ] || return 0
    for place in "/sys/fs/cgroup$group" "/sys/fs/cgroup$group/libvirt"; do
        for file in memory.high memory.pressure cpu.pressure io.pressure; do
            [ ! -f "$place/$file" ] || { chgrp hrapaq "$place/$file" && chmod g+w "$place/$file"; }
        done
    done
}

main "$@" >/dev/null 2>&1 </dev/null
exit 0
