//! What the node image is made of: packages, and files on top of them.

/// Debian release of the nodes.
pub(crate) const SUITE: &str = "bookworm";

/// Packages of the nodes, besides the minimal system.
pub(crate) const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "curl",
    "dbus",
    "ethtool",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-arping",
    "iputils-ping",
    "jq",
    "kmod",
    "libpam-systemd",
    "netcat-openbsd",
    "nftables",
    "openssh-server",
    "podman",
    "procps",
    "psmisc",
    "python3",
    "python3-minimal",
    "runc",
    "socat",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tcpdump",
];

/// Packages that the nodes' apt can install, without any other network: with what they depend on, they are a repository
/// inside the image.
pub(crate) const OFFERED: &[&str] = &["bird2", "frr", "gobgpd"];

/// Password of the user `pw` for sudo.
pub(crate) const SUDO_PASSWORD: &str = "lab-sudo-pw";

/// Units that a node in a container does not need and that make its boot longer.
pub(crate) const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "podman-auto-update.service",
    "podman-auto-update.timer",
    "podman-restart.service",
    "podman.service",
    "podman.socket",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
];

/// Units a node starts with, and those that tests turn on when they need them.
pub(crate) const ENABLED: &[&str] = &["ssh.service", "systemd-networkd.service"];
/// See [`ENABLED`].
pub(crate) const DISABLED: &[&str] = &["containerd.service", "nftables.service"];

/// Files of the image: path, mode, text.
pub(crate) const FILES: &[(&str, u32, &str)] = &[
    ("etc/resolv.conf", 0o644, ""),
    ("etc/sudoers.d/lab", 0o440, "debian ALL=(ALL) NOPASSWD:ALL\n"),
    (
        "etc/ssh/sshd_config.d/lab.conf",
        0o644,
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\nMaxStartups 100\n",
    ),
    // Else users other than root are turned away for a moment after the banner is there.
    ("etc/systemd/system/ssh.service.d/lab.conf", 0o644, "[Unit]\nAfter=systemd-user-sessions.service\n"),
    // A pod that ignores SIGTERM must not hold up a reboot for a minute and a half.
    (
        "etc/systemd/system.conf.d/lab.conf",
        0o644,
        "[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=20s\n",
    ),
    (
        "etc/containers/containers.conf",
        0o644,
        "[engine]\nruntime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n\
         [network]\nnetwork_backend=\"cni\"\n[containers]\ndefault_ulimits=[]\n",
    ),
    ("usr/sbin/runc", 0o755, include_str!("../files/runc-lab.sh")),
];

/// Kernel modules that `modprobe` shall find in the node: the machine's kernel has them built in or loaded, and a
/// container cannot load any.
pub(crate) const MODULES: &[&str] = &[
    "drivers/net/macvlan",
    "drivers/net/tun",
    "drivers/net/veth",
    "drivers/net/vxlan/vxlan",
    "fs/overlayfs/overlay",
    "net/bridge/br_netfilter",
    "net/bridge/bridge",
    "net/ipv4/netfilter/ip_tables",
    "net/ipv4/netfilter/iptable_filter",
    "net/ipv4/netfilter/iptable_nat",
    "net/ipv6/netfilter/ip6_tables",
    "net/netfilter/nf_conntrack",
    "net/netfilter/nf_nat",
    "net/netfilter/nf_tables",
    "net/netfilter/nfnetlink",
    "net/netfilter/nft_ct",
    "net/netfilter/nft_fib",
    "net/netfilter/nft_masq",
    "net/netfilter/nft_nat",
    "net/netfilter/nft_numgen",
    "net/netfilter/x_tables",
];
