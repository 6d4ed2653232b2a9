"""A nested KVM stack on one machine: this machine's libvirt (L0), VMs on it that are hypervisors
(L1), and KVM guests in these (L2), all running our own software. For tests and for trying things.

No product code imports this.
"""
