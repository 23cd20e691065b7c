//! The lab's LAN: network namespaces, a bridge for a switch, cables.

use crate::command::{output, output_with_input, run};
use crate::{Error, Result, paths};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::Command;

/// Network namespaces every lab has besides its nodes' own.
pub(crate) const SPACES: [&str; 4] = ["lan", "router", "wan", "client"];

/// Name of the network namespace of a host, `lan` for the switch.
pub(crate) fn space(lab: &str, host: &str) -> String {
    format!("{lab}-{host}")
}

/// Commands for `ip`, all in one namespace and one process; the first that fails ends it.
pub(crate) fn ip_batch(space: &str, lines: &str) -> Result<()> {
    output_with_input(Command::new("ip").args(["-netns", space, "-batch", "-"]), lines)?.ok().map(drop)
}

/// Runs `work` on a thread that is inside a network namespace.
pub(crate) fn within<T: Send>(space: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = paths::netns(space);
    let file = File::open(&path).map_err(Error::file("open", &path))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work()));
        match thread.join() {
            Ok(result) => result.map_err(Error::system(format!("enter {space}"))),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes the switch, the router, the client and the host beyond the router.
pub(crate) fn up(lab: &str) -> Result<()> {
    let names = SPACES.map(|host| space(lab, host));
    for name in &names {
        run("ip", &["netns", "add", name])?;
    }
    let [lan, router, wan, client] = names;
    ip_batch(
        &lan,
        &format!(
            "link set lo up
link add br0 type bridge forward_delay 0 stp_state 0
link set br0 up
link add router type veth peer name lan netns {router}
link set router master br0 up
link add client type veth peer name eth0 netns {client}
link set client master br0 up
"
        ),
    )?;
    ip_batch(
        &router,
        &format!(
            "link set lo up
link add wan type veth peer name eth0 netns {wan}
address add 192.168.50.1/24 dev lan
address add fd00:50::1/64 dev lan nodad
address add 192.0.2.1/24 dev wan
address add 2001:db8:2::1/64 dev wan nodad
link set lan up
link set wan up
"
        ),
    )?;
    ip_batch(
        &wan,
        "link set lo up
address add 192.0.2.2/24 dev eth0
address add 2001:db8:2::2/64 dev eth0 nodad
link set eth0 up
route add default via 192.0.2.1
route add default via 2001:db8:2::1
",
    )?;
    ip_batch(
        &client,
        "link set lo up
address add 192.168.50.100/24 dev eth0
address add fd00:50::100/64 dev eth0 nodad
link set eth0 up
route add default via 192.168.50.1
route add default via fd00:50::1
",
    )?;
    within(&router, || {
        // Seen from a thread in the router's namespace, these are the router's own.
        for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let path = format!("/proc/sys/net/{file}");
            std::fs::write(&path, "1").map_err(Error::file("write", &path))?;
        }
        Ok(())
    })?
}

/// A new namespace for a node that boots, with a cable to the switch.
pub(crate) fn plug(lab: &str, node: &str, mac: &str, attached: bool) -> Result<()> {
    unplug(lab, node);
    let own = space(lab, node);
    run("ip", &["netns", "add", &own])?;
    let attach = if attached { "master br0" } else { "nomaster" };
    ip_batch(
        &space(lab, "lan"),
        &format!(
            "link add {node} type veth peer name eth0 address {mac} netns {own}
link set {node} {attach} up
"
        ),
    )
}

/// Takes the node's cable and namespace away, as far as they are there.
pub(crate) fn unplug(lab: &str, node: &str) {
    let own = space(lab, node);
    if paths::netns(&own).exists() {
        let _ = run("ip", &["netns", "delete", &own]);
    }
    // A process left in the namespace would keep it, and with it the cable.
    let _ = output(Command::new("ip").args(["-netns", &space(lab, "lan"), "link", "delete", node]));
}

/// Removes every namespace that begins with the lab's name.
pub(crate) fn down(lab: &str) -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(lab).and_then(|rest| rest.strip_prefix('-')).is_some_and(|host| {
            SPACES.contains(&host)
                || host.strip_prefix("node").is_some_and(|number| number.parse::<u8>().is_ok())
        });
        if ours {
            run("ip", &["netns", "delete", &name])?;
        }
    }
    Ok(())
}
