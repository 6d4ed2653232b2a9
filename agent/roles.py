"""What a process is there for, told by its name as the kernel keeps it (comm). Pure.

A table, small on purpose: names of programs that servers run, so that a machine can be told from
another by its work. A word ending in `*` is the beginning of names; the longest that fits counts,
and a whole name before any beginning. Programs in one interpreter or runtime look alike from here:
a search engine in Java is `java`, because only its arguments, which nobody reads, would say more.
"""

from functools import lru_cache

KERNEL, AGENT, OTHER = "kernel", "agent", "other"  # threads of the kernel, ourselves, the rest
UNREAD = "unread"  # more than are read, or not ours to see

COMM_LENGTH = 15  # characters that the kernel keeps of a name

# Role -> names. What stands in two lines would be a mistake (a test looks).
TABLE: dict[str, str] = {
    "agent": (
        "amazon-ssm-agen* cloud-init* google_* hrapaq* qemu-ga spice-vdagent* "
        "ssm-agent-worke* VBoxService vmtoolsd waagent xe-daemon"
    ),
    "application": (
        "beam.smp bun deno dotnet elixir epmd erl_child_setup julia lua* luajit MATLAB* mono "
        "node nodejs npm octave* passenger* Passenger* perl* php php-cgi php-fpm* php7* php8* "
        "PM2* pnpm puma* R Rscript ruby* sidekiq* tomcat* unicorn* wildfly* yarn"
    ),
    "backup": (
        "amandad bacula-* bareos-* borg borgmatic duplicity proxmox-backup-* rclone restic "
        "rsync urbackup* veeam*"
    ),
    "batch": (
        "condor_* flux-broker hydra_* mom_main mpiexec mpirun munged orted pbs_* pmi_proxy "
        "prted sbatchd sge_* slurm* stress stress-ng*"
    ),
    "build": (
        "act_runner as bazel* buildah buildbot* buildkite-agent c++ cargo cc cc1 cc1plus "
        "ccache clang* cmake collect2 cpp distcc* dpkg-buildpack* esbuild faked-* fakeroot "
        "g++ gcc ghc git gitlab-runner* gmake go gradle* javac kaniko ld ld.* lld make meson "
        "mold mvn ninja rpmbuild Runner.* rustc sccache swiftc tsc webpack*"
    ),
    "cache": (
        "cache-main dragonfly keydb-* mcrouter memcached nutcracker redis-* squid* valkey-* "
        "varnishd"
    ),
    "container": (
        "buildkitd calico-* cilium-* conmon containerd* coredns cri-dockerd crio crun docker* "
        "etcd flanneld fuse-overlayfs incusd* k0s* k3s* kube-* kubelet lxc-* lxcfs lxd "
        "microk8s* nomad podman* rke2* rootlessport runc slirp4netns tini"
    ),
    "database": (
        "arangod clickhouse* cockroach couchdb db2sysc firebird* influxd influxdb3 manticore* "
        "mariadbd mariadbd-safe maxscale meilisearch milvus mongod mongos mysqld* mysqlrouter "
        "neo4j* ns-slapd ora_* oracle* pd-server pgbouncer pgpool* postgres* postmaster "
        "proxysql qdrant questdb rethinkdb rqlited scylla* searchd slapd sqlservr surreal "
        "tarantool tidb-server tikv-server timescaledb* tnslsnr typesense-serv* vtgate "
        "vttablet weaviate yb-*"
    ),
    "desktop": (
        "at-spi* chrome* chromium* cinnamon* dconf-service evolution-* firefox* gdm* gjs "
        "gnome-* gsd-* gvfs* i3 ibus-* kded* kdeinit* konsole ksmserver kwin* lightdm* "
        "lxpanel lxqt* mate-* mutter* nautilus pipewire* plasma* pulseaudio sddm* soffice* "
        "sway thunderbird* tracker-* wireplumber X x11vnc xdg-* xfce* xfwm4 Xorg xrdp* xterm "
        "Xvnc* Xwayland"
    ),
    "dns": (
        "AdGuardHome bind9 dhcpd dhcrelay dnsdist dnsmasq kea-dhcp* knotd kresd named nsd "
        "pdns_* pihole-FTL technitium* unbound*"
    ),
    "hypervisor": (
        "cinder-* cloud-hypervis* crosvm firecracker ksmtuned kvm libvirtd neutron-* nova-* "
        "ovn-* ovs-* ovsdb-* pve-* pvedaemon pveproxy pvestatd qemu-* supervdsmd swtpm "
        "VBoxHeadless VBoxSVC vdsmd vhostuser* virt-* virt-handler virt-launcher* "
        "virtinterfaced virtiofsd virtlockd virtlogd virtnetworkd virtnodedevd virtnwfilterd "
        "virtproxyd virtqemud virtsecretd virtstoraged vmware-vmx xenconsoled xenstored"
    ),
    "java": "java jsvc",
    "learning": (
        "gcs_server llama-* ollama* ray::* raylet tensorboard tensorflow_mod* "
        "text-generation* torchrun tritonserver vllm*"
    ),
    "mail": (
        "amavisd* anvil clamd cyrmaster dovecot* exim* freshclam imap imap-login lmtp "
        "mimedefang* msmtpd nullmailer-send opendkim opendmarc pickup pop3-login postfix qmgr "
        "rspamd* sendmail* smtp smtpd spamd stalwart* tlsmgr trivial-rewrite"
    ),
    "monitoring": (
        "*_exporter alertmanager alloy apps.plugin atop* auditbeat* cadvisor check_mk_agent "
        "cmk-agent* collectd datadog-* filebeat* fluent-bit fluentd go.d.plugin grafana* "
        "icinga2 jaeger* loki metricbeat* mimir* monit nagios* netdata newrelic-* "
        "node_exporter nrpe ossec-* otelcol* packetbeat* pcp* pmcd pmda* pmie pmlogger "
        "pmproxy process-agent prometheus promtail sadc sar smartd snmpd statsd td-agent* "
        "telegraf tempo thanos* trace-agent vector victoria-metric* vmagent vmalert wazuh-* "
        "zabbix_*"
    ),
    "proxy": (
        "cloudflared envoy frpc frps ha_logd haproxy keepalived kong linkerd* nginx-ingress* "
        "ngrok pilot-agent pound relayd sniproxy stunnel* traefik ztunnel"
    ),
    "python": (
        "airflow* ansible* celery* conda dagster* daphne flask gunicorn* hypercorn* ipython* "
        "jupyter* platform-python pypy* python* salt-* supervisord twistd uvicorn* uwsgi*"
    ),
    "queue": (
        "activemq* artemis* beanstalkd emqx* gearmand kafka* mosquitto* nats-server nsqd "
        "nsqlookupd pulsar* qpidd rabbitmq* redpanda vernemq* zookeeper*"
    ),
    "security": (
        "auditd cbagentd certmonger crowdsec* fail2ban-* falco* falcon-sensor* freeradius "
        "gssproxy ipa-* kadmind keycloak* krb5kdc mdatp osqueryd radiusd snort* sssd* "
        "suricata* tacacs* teleport vault wdavdaemon winbindd zeek"
    ),
    "session": (
        "agetty bash btop busybox cat dash dropbear fish getty gpg-agent htop ksh less login "
        "mc mosh-server nano scp screen SCREEN sftp-server sh sleep ssh ssh-agent sshd* su "
        "sudo tail tcsh tmux* top vi vim watch zsh"
    ),
    "storage": (
        "beegfs-* blkmapd ceph-* corosync* crmd dmeventd drbd* garage glusterd glusterfs* "
        "iscsid juicefs lustre* lvmetad mdadm mfs* minio moosefs* multipathd nfs-* nfsd nmbd "
        "pacemaker* proftpd pure-ftpd* radosgw rpc-* rpc.* rpcbind sbd seaweedfs* sheep smbd "
        "statd stonith* targetcli tgtd vsftpd weed zed zfs* zpool"
    ),
    "system": (
        "(sd-pam) abrt* accounts-daemon acpid anacron apt* atd avahi-* bluetoothd boltd "
        "chronyd colord cron crond cups-* cupsd dbus-* dhclient dhcpcd* dnf* dpkg* earlyoom "
        "elogind* fwupd gpm haveged hostapd init irqbalance iwd kexec* klogd logrotate "
        "low-memory-moni* lvm* mcelog ModemManager modprobe needrestart networkd-dispat* "
        "NetworkManager nm-* ntpd ntpdate oomd openrc* packagekitd plymouthd polkitd "
        "power-profiles* rasdaemon rngd rpm rsyslogd rtkit-daemon runsv runsvdir s6-* seatd "
        "snapd supervise-daemo* svlogd switcheroo-cont* syslog-ng syslogd systemd* thermald "
        "timesyncd tuned ua-timer udev* udevd udisksd unattended-upgr* update-notifier "
        "upowerd wpa_supplicant yum"
    ),
    "vpn": (
        "babeld bgpd bird bird6 charon* frr* headscale ipsec nebula ocserv openvpn* ospfd* "
        "pppd strongswan* tailscaled tincd wg-quick wireguard* xl2tpd zebra zerotier-one"
    ),
    "web": (
        "angie* apache2* caddy cherokee* h2o hiawatha httpd* jetty* lighttpd* litespeed* "
        "lshttpd* nginx* openresty thttpd unitd webfsd"
    ),
}


@lru_cache(maxsize=1024)  # strangers choose names: memory must not follow
def role_of(comm: str) -> str:
    """The role of a process by its name; `other` where the table does not know it."""
    exact = _EXACT.get(comm)
    if exact is not None:
        return exact
    for beginning, role in _BEGINNINGS:
        if comm.startswith(beginning):
            return role
    for end, role in _ENDS:
        if comm.endswith(end):
            return role
    return OTHER


_WORDS = tuple((word, role) for role, words in TABLE.items() for word in words.split())
_EXACT = {word[:COMM_LENGTH]: role for word, role in _WORDS if "*" not in word}
_BEGINNINGS = sorted(
    ((word[:-1][:COMM_LENGTH], role) for word, role in _WORDS if word.endswith("*")),
    key=lambda pair: (-len(pair[0]), pair),
)
_ENDS = tuple((word[1:], role) for word, role in _WORDS if word.startswith("*"))
