"""The machines of the testbed as libvirt reads them. Pure."""

from testbed.image import Image
from testbed.layout import L1, L2, Places

PORT_NAME = "org.hrapaq.testbed"
STATISTICS_PERIOD_S = 1
CPU_PERIOD_US = 100_000
TRANSLATION_CACHE_MIB = 256  # of the emulator, in its resident memory; QEMU's default: 1 GiB
COMMAND_LINE = "console=ttyS0 mitigations=off quiet psi=1 panic=1 net.ifnames=0"
INSIDE_L1 = "/opt/testbed"
LOGS_IN_L1 = "/var/log/libvirt/qemu"


def l1_xml(l1: L1, image: Image, places: Places) -> str:
    """Emulated, with all that the emulator can do: AMD's nested virtualisation among it."""
    return f"""<domain type='qemu'>
  <name>hrapaq-bed-{l1.name}</name>
  <uuid>{l1.uuid}</uuid>
  <memory unit='MiB'>{l1.memory_mib}</memory>
  <currentMemory unit='MiB'>{l1.current_mib}</currentMemory>
  <vcpu>{l1.vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initrd}</initrd>
    <cmdline>{COMMAND_LINE} testbed.level=1</cmdline>
  </os>
  <features>
    <acpi/>
    <tcg><tb-cache unit='MiB'>{TRANSLATION_CACHE_MIB}</tb-cache></tcg>
  </features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='unsafe'/>
      <source file='{places.disk(l1.name)}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{image.disk}'/>
      <target dev='vdb' bus='virtio'/>
      <readonly/>
    </disk>
    <interface type='user'><model type='virtio'/></interface>
    <channel type='unix'>
      <source mode='bind' path='{places.port(l1.name)}'/>
      <target type='virtio' name='{PORT_NAME}'/>
    </channel>
    <serial type='file'><source path='{places.console(l1.name)}' append='on'/></serial>
    {_balloon()}
  </devices>
</domain>
"""


def l2_xml(l2: L2, bus: str) -> str:
    """A guest of real KVM. Its root is the shared image, read past its host's page cache.

    bus: the URL of the NATS server as a machine of the testbed reaches it.
    """
    words = [COMMAND_LINE, "testbed.level=2", f"testbed.name={l2.name}", f"testbed.bus={bus}"]
    words += [f"testbed.address=172.17.{l2.number}.15", f"testbed.gateway=172.17.{l2.number}.2"]
    if not l2.balloon:
        words.append("testbed.without=virtio_balloon")
    return f"""<domain type='kvm'>
  <name>{l2.name}</name>
  <uuid>{l2.uuid}</uuid>
  <memory unit='MiB'>{l2.memory_mib}</memory>
  <currentMemory unit='MiB'>{l2.current_mib}</currentMemory>
  <vcpu>1</vcpu>{_quota(l2)}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{INSIDE_L1}/kernel</kernel>
    <initrd>{INSIDE_L1}/initrd</initrd>
    <cmdline>{" ".join(words)}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/vdb'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
      <shareable/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source file='/var/lib/libvirt/images/{l2.name}.raw'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <interface type='user'>
      <model type='virtio'/>
      <ip family='ipv4' address='172.17.{l2.number}.0' prefix='24'/>
    </interface>
    <channel type='unix'><target type='virtio' name='{PORT_NAME}'/></channel>
    <serial type='file'><source path='{LOGS_IN_L1}/{l2.name}.console' append='on'/></serial>
    {_balloon()}
  </devices>
</domain>
"""


def _quota(l2: L2) -> str:
    if l2.cpu_millicores is None:
        return ""
    period = f"<period>{CPU_PERIOD_US}</period>"
    return f"<cputune>{period}<quota>{l2.cpu_millicores * CPU_PERIOD_US // 1000}</quota></cputune>"


def _balloon() -> str:
    """libvirt's defaults, as most machines have them: pages that a guest frees stay with it until
    the balloon takes them, so that what moves is seen in resident memory; and a guest that runs
    short cannot help itself."""
    return f"""<memballoon model='virtio' autodeflate='off' freePageReporting='off'>
      <stats period='{STATISTICS_PERIOD_S}'/>
    </memballoon>"""
