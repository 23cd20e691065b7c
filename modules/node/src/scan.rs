//! Which machines of the LAN have addresses that a pool holds: asked by ARP probes and solicitations, which change nobody's
//! tables (RFC 5227 2.1.1, RFC 4862 5.4.2).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use homelab_linux::l2::{Interface, Port, interfaces};
use homelab_linux::netlink::Socket;
use homelab_model::{PoolRange, Scanned};
use homelab_protocol::Request;
use homelab_speaker::arp::{Arp, Operation};
use homelab_speaker::mac::Mac;
use homelab_speaker::ndp::{Message, Ndp};

/// Each address is asked so often: frames get lost.
const ROUNDS: u32 = 3;
/// So many questions are sent in a row, and then a pause is made: access points drop floods of broadcasts.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);
/// How long answers are waited for after each round.
const WAIT: Duration = Duration::from_millis(400);

/// Asks on every interface that has carrier for those of the addresses that are on its networks.
pub(crate) fn scan(ranges: &[PoolRange]) -> Result<Vec<Scanned>, String> {
    let addresses = expand(ranges)?;
    let mut netlink = Socket::route().map_err(|e| e.to_string())?;
    let mut found = BTreeSet::new();
    for interface in interfaces(&mut netlink).map_err(|e| e.to_string())? {
        let here = |address: &&IpAddr| {
            let on_link = interface.networks.iter().any(|network| network.contains(*address));
            on_link && interface.networks.iter().all(|network| network.addr() != **address)
        };
        let asked: Vec<IpAddr> = addresses.iter().filter(here).copied().collect();
        if interface.operational && !asked.is_empty() {
            let answers = ask(&interface, &asked).map_err(|e| format!("{}: {e}", interface.name))?;
            let scanned = |(address, mac): (IpAddr, Mac)| Scanned {
                address,
                mac: mac.to_string(),
                interface: interface.name.clone(),
            };
            found.extend(answers.into_iter().map(scanned));
        }
    }
    Ok(found.into_iter().collect())
}

/// All addresses of the ranges.
fn expand(ranges: &[PoolRange]) -> Result<Vec<IpAddr>, String> {
    let total = ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(range.count()));
    if total > Request::SCAN || ranges.iter().any(|range| range.count() == 0) {
        return Err(format!("{total} addresses cannot be scanned: {} at most", Request::SCAN));
    }
    Ok(ranges.iter().flat_map(PoolRange::addresses).collect())
}

fn ask(interface: &Interface, addresses: &[IpAddr]) -> std::io::Result<BTreeMap<IpAddr, Mac>> {
    let mut port = Port::open(&interface.name)?;
    port.hear(addresses)?;
    let own = Mac(interface.mac);
    let mut answers = BTreeMap::new();
    for _ in 0..ROUNDS {
        for some in addresses.chunks(AT_ONCE) {
            for address in some.iter().filter(|address| !answers.contains_key(*address)).collect::<Vec<_>>() {
                let probe = match address {
                    IpAddr::V4(address) => Arp::probe(own, *address).build(),
                    IpAddr::V6(address) => Ndp::probe(own, *address).build(),
                };
                port.send(&probe)?;
            }
            listen(&mut port, own, PAUSE, &mut answers)?;
        }
        listen(&mut port, own, WAIT, &mut answers)?;
    }
    let asked: BTreeSet<&IpAddr> = addresses.iter().collect();
    answers.retain(|address, _| asked.contains(address));
    Ok(answers)
}

fn listen(
    port: &mut Port,
    own: Mac,
    time: Duration,
    answers: &mut BTreeMap<IpAddr, Mac>,
) -> std::io::Result<()> {
    let end = Instant::now() + time;
    loop {
        while let Some(frame) = port.receive()? {
            if let Some((address, mac)) = holder(frame).filter(|(_, mac)| *mac != own) {
                answers.insert(address, mac);
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        homelab_linux::wait(&[port.as_fd()], Some(left))?;
    }
}

/// The address that a frame's sender says it has.
fn holder(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    if let Ok(arp) = Arp::parse(frame) {
        let says = !arp.is_probe() && (arp.operation == Operation::Reply || arp.sender == arp.target);
        return says.then_some((IpAddr::V4(arp.sender), arp.sender_mac));
    }
    let ndp = Ndp::parse(frame).ok()?;
    matches!(ndp.message, Message::Advertisement { .. }).then(|| (IpAddr::V6(ndp.target), ndp.speaker()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(command: &str) {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn range(first: &str, last: &str) -> PoolRange {
        PoolRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
    }

    #[test]
    fn ranges_are_expanded_up_to_a_limit() {
        let all = expand(&[range("10.0.0.254", "10.0.1.1"), range("fd00::ffff", "fd00::1:0")]).unwrap();
        let text: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1", "fd00::ffff", "fd00::1:0"]);
        assert_eq!(expand(&[range("10.0.0.0", "10.0.15.255")]).unwrap().len(), 4096);
        for bad in [
            vec![range("10.0.0.0", "10.0.16.0")],
            vec![range("10.0.0.0", "10.0.15.255"), range("10.1.0.0", "10.1.0.0")],
            vec![range("fd00::", "fdff::")],
            vec![range("10.0.0.9", "10.0.0.1")],
            vec![range("10.0.0.1", "fd00::1")],
        ] {
            assert!(expand(&bad).is_err(), "{bad:?}");
        }
    }

    /// A node with `eth0`, and another machine on its LAN that has some addresses: real kernels ask and answer.
    #[test]
    fn who_answers_on_a_real_lan_is_found() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        std::thread::scope(|scope| {
            let test = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let (ready, wait) = std::sync::mpsc::channel();
                let (end, stay) = std::sync::mpsc::channel::<()>();
                let other = std::thread::spawn(move || {
                    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    ready.send(nix::unistd::gettid()).unwrap();
                    let _ = stay.recv();
                });
                let id = wait.recv().unwrap();
                let enter = format!("nsenter --net=/proc/{}/task/{id}/ns/net", std::process::id());
                run(&format!("ip link add eth0 type veth peer name lan netns {id} && ip link set eth0 up"));
                run("ip addr add 192.168.50.11/24 dev eth0; ip addr add fd00:50::11/64 dev eth0 nodad");
                run(&format!("{enter} ip link set lan address 02:00:00:00:00:99"));
                run(&format!("{enter} ip link set lan up"));
                for address in ["192.168.50.203/24", "192.168.50.250/24", "fd00:50::203/64"] {
                    run(&format!("{enter} ip addr add {address} dev lan nodad"));
                }
                let pool = [
                    range("192.168.50.200", "192.168.50.220"),
                    range("fd00:50::200", "fd00:50::220"),
                    range("192.168.50.11", "192.168.50.11"),
                    range("172.16.0.1", "172.16.0.9"),
                ];
                // The other kernel's answer by neighbour discovery needs its link-local address to be usable.
                let deadline = Instant::now() + Duration::from_secs(30);
                loop {
                    let found = scan(&pool).unwrap();
                    let text: Vec<String> =
                        found.iter().map(|f| format!("{} {} {}", f.address, f.mac, f.interface)).collect();
                    if text
                        == ["192.168.50.203 02:00:00:00:00:99 eth0", "fd00:50::203 02:00:00:00:00:99 eth0"]
                    {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{text:?}");
                }
                drop(end);
                other.join().unwrap();
            });
            test.join().unwrap();
        });
    }
}
