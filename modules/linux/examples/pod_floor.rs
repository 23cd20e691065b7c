//! The floor of the CNI benchmark: the kernel operations of an ADD or a DEL in one bare process, without the
//! plugin's own work (request, address decision, records, result).

use std::path::Path;

use homelab_linux::VethEnd;
use homelab_linux::pod::{Netns, PodRoute, PodSocket, Veth};

const BRIDGE: &str = "floor0";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let netns = std::env::var("CNI_NETNS")?;
    let mut socket = PodSocket::open()?;
    if std::env::var("CNI_COMMAND")? == "DEL" {
        socket.delete_link("floorv")?;
        return Ok(());
    }
    if socket.link(BRIDGE)?.is_none() {
        // Once, before the measured rounds.
        std::process::Command::new("ip").args(["link", "add", BRIDGE, "type", "bridge"]).status()?;
        std::process::Command::new("ip").args(["link", "set", BRIDGE, "up"]).status()?;
        std::process::Command::new("ip").args(["addr", "add", "10.92.0.1/24", "dev", BRIDGE]).status()?;
    }
    let bridge = socket.link(BRIDGE)?.ok_or("no bridge")?.index;
    let netns = Netns::open(Path::new(&netns))?;
    socket.create_veth(
        &netns,
        &Veth {
            host: VethEnd { name: "floorv", mac: None },
            pod: VethEnd { name: "eth0", mac: Some([2, 0x5c, 0, 0, 0, 2]) },
            mtu: 1450,
            bridge,
            alias: "floor",
            hairpin: true,
            isolated: false,
        },
    )?;
    let route = PodRoute {
        destination: "0.0.0.0/0".parse()?,
        via: Some("10.92.0.1".parse()?),
        onlink: false,
        metric: 0,
    };
    netns.socket()?.configure("eth0", &["10.92.0.2/24".parse()?], &[route])?;
    Ok(())
}
