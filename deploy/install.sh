#!/bin/sh
# Puts units, user and examples of settings in place, for a program that pip has put into
# /opt/hrapaq. Starts nothing, and leaves files in /etc/hrapaq that are there alone.
#
#   sh /opt/hrapaq/share/hrapaq/install.sh host|guest|controller
#   sh /opt/hrapaq/share/hrapaq/install.sh remove    # puts VMs back first; keeps settings and state
set -eu

here=$(cd "$(dirname "$0")" && pwd)
units=/etc/systemd/system
settings=/etc/hrapaq
hook=/etc/libvirt/hooks/qemu.d/hrapaq

main() {
    [ "$(id -u)" = 0 ] || die "needs root"
    case ${1:-} in
    host) install_host ;;
    guest) install_guest ;;
    controller) install_controller ;;
    remove) remove ;;
    *) die "usage: install.sh host|guest|controller|remove" ;;
    esac
}

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

install_host() {
    needs hrapaq-agent
    getent group libvirt >/dev/null || die "there is no group libvirt: install libvirt first"
    /opt/hrapaq/bin/python -c 'import libvirt' 2>/dev/null ||
        die "libvirt-python is missing: apt install python3-libvirt and make the environment with" \
            "--system-site-packages, or pip install 'hrapaq[host]'"
    make_user hrapaq hrapaq-host
    if [ -d /etc/polkit-1/rules.d ]; then
        put polkit/60-hrapaq.rules /etc/polkit-1/rules.d/60-hrapaq.rules
    fi
    install -D -m 0755 "$here/hand-over.sh" $hook
    # It looks for hooks when it starts or reloads; VMs do not notice.
    for daemon in libvirtd virtqemud; do
        ! systemctl --quiet is-active $daemon || systemctl reload $daemon
    done
    put_units hrapaq.slice hrapaq-agent.service hrapaq-agent-restore.service
    if systemd-detect-virt --quiet --vm; then example agent-l1 agent; else example agent-l0 agent; fi
    done_with agent.toml hrapaq-agent
}

install_guest() {
    needs hrapaq-agent
    make_user hrapaq
    put_units hrapaq-agent-guest.service
    example agent-guest agent
    done_with agent.toml hrapaq-agent-guest
}

install_controller() {
    needs hrapaq-controller
    put_units hrapaq-controller.service
    example controller controller
    if [ -x /opt/hrapaq/bin/nats-server ]; then
        put_units hrapaq-nats.service
        [ -e $settings/nats.conf ] || put examples/nats.conf $settings/nats.conf
        done_with controller.toml hrapaq-nats hrapaq-controller
    else
        say "no nats-server in /opt/hrapaq: bus_servers must name one of yours"
        done_with controller.toml hrapaq-controller
    fi
}

remove() {
    for unit in hrapaq-agent hrapaq-agent-guest hrapaq-controller hrapaq-nats; do
        [ ! -e $units/$unit.service ] || systemctl disable --now $unit
    done
    if [ -e $units/hrapaq-agent-restore.service ]; then
        # While nothing is removed yet: who is not put back now never will be. As before the first
        # change here, not as after a death; it reads agent.toml, for another libvirt or state.
        say "putting VMs back as they were found"
        systemd-run --quiet --pipe --wait --collect --property=User=hrapaq \
            /opt/hrapaq/bin/hrapaq-agent restore --config $settings/agent.toml ||
            die "not all VMs could be put back, see above; nothing was removed"
    fi
    rm -f $units/hrapaq.slice $units/hrapaq-agent.service $units/hrapaq-agent-guest.service \
        $units/hrapaq-agent-restore.service $units/hrapaq-controller.service \
        $units/hrapaq-nats.service $hook /etc/sysusers.d/hrapaq*.conf \
        /etc/polkit-1/rules.d/60-hrapaq.rules
    systemctl daemon-reload
    left=$(ls -d /opt/hrapaq $settings /var/lib/hrapaq-agent /var/lib/private/hrapaq* 2>/dev/null)
    say "removed; what is left: rm -r" $left "; userdel hrapaq"
}

needs() {
    [ -x "/opt/hrapaq/bin/$1" ] || die "/opt/hrapaq/bin/$1 is not there: pip install the wheel first"
}

put() {
    install -D -m 0644 "$here/$1" "$2"
}

make_user() {
    for file in "$@"; do put "systemd/$file.sysusers.conf" "/etc/sysusers.d/$file.conf"; done
    for file in "$@"; do systemd-sysusers "$file.conf"; done
}

put_units() {
    for unit in "$@"; do put "systemd/$unit" "$units/$unit"; done
    systemctl daemon-reload
}

example() {
    [ -e "$settings/$2.toml" ] || put "examples/$1.toml" "$settings/$2.toml"
}

done_with() {
    file=$1
    shift
    say "next: edit $settings/$file, then: systemctl enable --now $*"
}

main "$@"
