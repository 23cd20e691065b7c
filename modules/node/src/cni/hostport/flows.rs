//! Connections that the kernel tracks.

use homelab_cni::CniError;
use homelab_cni::hostport::Claim;
use homelab_linux::conntrack::{self, Family, Flow};
use homelab_linux::netlink::{NetlinkError, Socket};
use homelab_linux::pod::PodSocket;
use homelab_model::service::Protocol;
use nix::errno::Errno;

use super::kernel;

/// Ends flows of datagram protocols that would go on past new ports, or by ports that are gone (k8s#59368).
pub(super) fn end_flows(
    claim: &Claim,
    socket: &mut Socket,
    host: &mut PodSocket,
    opened: bool,
) -> Result<(), CniError> {
    if !claim.has_datagrams() {
        return Ok(());
    }
    let local = if opened { host.all_addresses().map_err(kernel)? } else { Vec::new() };
    let is_local = |address: std::net::IpAddr| address.is_loopback() || local.contains(&address);
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        if !claim.ports.iter().any(|port| port.protocol == protocol) {
            continue;
        }
        for (family, v4) in [(Family::V4, true), (Family::V6, false)] {
            if !claim.addresses.iter().any(|address| address.is_ipv4() == v4) {
                continue;
            }
            let flows = match conntrack::dump(socket, family, protocol.number()) {
                // No connection was ever tracked in this namespace.
                Err(NetlinkError::Refused { code: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => continue,
                flows => flows.map_err(kernel)?,
            };
            let stale = |flow: &Flow| {
                let (original, answers) = (flow.original.destination, flow.reply.source);
                if opened {
                    claim.diverts(protocol.number(), original, answers, is_local)
                } else {
                    claim.carries(protocol.number(), original, answers)
                }
            };
            for flow in flows.iter().filter(|flow| stale(flow)) {
                conntrack::delete(socket, &flow.original, flow.zone, flow.id).map_err(kernel)?;
            }
        }
    }
    Ok(())
}
