#!/bin/busybox sh
# /init of the guests of `cargo xtask bench vm`: mounts, modules, then commands from the second serial port, one a line.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
while read -r module; do
    insmod "/modules/$module.ko" || echo "init: cannot load $module" > /dev/console
done < /modules/order
# Discovery packets of the guests' own are neither wanted nor counted.
[ -d /proc/sys/net/ipv6 ] && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set dev lo up
stty raw -echo < /dev/ttyS1
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
echo '##READY##'
while read -r number command; do
    # In a shell of its own: `exit` must not end init.
    sh -c "$command" < /dev/null
    echo "##END $number $?##"
done
