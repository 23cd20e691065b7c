# Runs as process 1 of the router's pid namespace, in a mount and uts namespace of its own.
# $1 is the router's root directory.
set -e
root=$1
hostname router
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=755,nosuid,size=1m tmpfs "$root/dev"
mkdir "$root/dev/pts"
mount -t devpts -o gid=5,mode=620,ptmxmode=666,newinstance devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for device in null zero full random urandom tty; do
  cp -a "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/run/sshd"
exec chroot "$root" /usr/sbin/sshd -D -e
