#!/bin/busybox sh
# The first process of every machine of the testbed: inserts drivers, finds the root, hands over.
# An L1 gets its own disk, writable; an L2 the shared image, read-only, below a layer in memory.

/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /root /lower /upper
mount -t proc proc /proc
mount -t devtmpfs dev /dev

level=1         # testbed.level: 1 or 2
without=        # testbed.without: a driver that is left out, for guests without a balloon
for word in $(cat /proc/cmdline); do
    case $word in
    testbed.level=*) level=${word#*=} ;;
    testbed.without=*) without=${word#*=} ;;
    esac
done

for module in $(cat /modules/order); do
    case $level-$module in
    *-"$without.ko" | 2-kvm* | 2-irqbypass.ko | 2-ccp.ko) ;;
    *) insmod "/modules/$module" ;;
    esac
done
until [ -b /dev/vda ]; do usleep 10000; done

if [ "$level" = 1 ]; then
    mount -t ext4 /dev/vda /root
    next=/sbin/init
else
    mount -t ext4 -o ro,noload /dev/vda /lower
    mount -t tmpfs -o size=64m tmpfs /upper
    mkdir /upper/data /upper/work
    mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root
    next=/opt/testbed/inside/l2_init.sh
fi
mount --move /dev /root/dev
umount /proc
exec switch_root /root "$next"
