//! Services in plans: what packets to an address meet, instead of the elements that make it so.

use std::collections::{BTreeMap, BTreeSet};

use homelab_model::{Action, Module, PlannedChange, ServiceElements, ours};

/// What a frontend says of itself in elements.
#[derive(Default)]
struct Frontend<'a> {
    sets: BTreeSet<&'a str>,
    endpoints: BTreeSet<&'a str>,
    local: BTreeSet<&'a str>,
    sources: Vec<&'a str>,
}

/// A line for each address, protocol and port: `10.96.0.80:80/tcp -> 10.244.1.7:8080, 10.244.2.4:8080`.
pub(super) fn lines(service: &ServiceElements) -> Vec<String> {
    let mut frontends: BTreeMap<(&str, &str, &str), Frontend<'_>> = BTreeMap::new();
    let mut other = Vec::new();
    for element in &service.elements {
        let Some((set, rest)) = element.split_once(' ') else { continue };
        // The digit at the end is the family's.
        let set = set.trim_end_matches(['4', '6']);
        let (key, to) = rest.split_once(" : ").unwrap_or((rest, ""));
        match key.split(" . ").collect::<Vec<_>>()[..] {
            [_] if set == "cluster-addresses" => {}
            [address, protocol, port, ref more @ ..] => {
                let frontend = frontends.entry((address, protocol, port)).or_default();
                frontend.sets.insert(set);
                match (set, more) {
                    // The second half of a pool's numbers is for pods and the node itself.
                    ("endpoints", [slot]) if slot.parse().is_ok_and(|n: u32| n & 0x8000 != 0) => {
                        frontend.local.insert(to);
                    }
                    ("endpoints", _) => {
                        frontend.endpoints.insert(to);
                    }
                    ("source-allowed", [range]) => frontend.sources.push(range),
                    _ => {}
                }
            }
            _ => other.push(element.clone()),
        }
    }
    let mut lines: Vec<String> =
        frontends.iter().map(|(&(address, protocol, port), f)| f.line(address, protocol, port)).collect();
    lines.extend(other);
    lines
}

/// An address and port from nft's words.
fn socket(address: &str, port: &str) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn list(endpoints: &BTreeSet<&str>) -> String {
    let all = endpoints.iter().map(|to| match to.split_once(" . ") {
        Some((address, port)) => socket(address, port),
        None => (*to).to_owned(),
    });
    all.collect::<Vec<_>>().join(", ")
}

impl Frontend<'_> {
    fn line(&self, address: &str, protocol: &str, port: &str) -> String {
        let mut to = if !self.endpoints.is_empty() {
            list(&self.endpoints)
        } else if self.sets.contains("no-local-endpoints") {
            "no endpoint on this node".to_owned()
        } else {
            "no endpoints".to_owned()
        };
        if !self.local.is_empty() {
            to += &format!("; pods and nodes: {}", list(&self.local));
        }
        let mut notes = Vec::new();
        if self.sets.contains("external-local") {
            notes.push("externalTrafficPolicy Local".to_owned());
        }
        if self.sets.contains("affinity-services") {
            notes.push("sessionAffinity ClientIP".to_owned());
        }
        if self.sets.contains("source-ranged") {
            notes.push(format!("from {} only", self.sources.join(", ")));
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
        format!("{}/{protocol} -> {to}{notes}", socket(address, port))
    }
}

/// Without the chains of the proxy's table where it comes or goes as a whole: there are dozens, the same everywhere.
pub(super) fn folded(mut shown: Vec<PlannedChange>) -> Vec<PlannedChange> {
    let table = format!("nft table {}", ours::PROXY_TABLE);
    let whole = shown.iter().find(|c| c.module == Module::Proxy && c.object == table).map(|c| c.action);
    if let Some(action @ (Action::Create | Action::Delete)) = whole {
        let chains = format!("nft chain {} ", ours::PROXY_TABLE);
        shown.retain(|c| c.action != action || !c.object.starts_with(&chains));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_told_as_what_packets_meet() {
        let elements = [
            "cluster-addresses4 10.96.0.80",
            "frontends4 10.96.0.80 . tcp . 80",
            "endpoints4 10.96.0.80 . tcp . 80 . 131072 : 10.244.1.7 . 8080",
            "endpoints4 10.96.0.80 . tcp . 80 . 131073 : 10.244.2.4 . 8080",
            "no-endpoints6 fd00::80 . udp . 53",
            "frontends4 192.168.50.200 . tcp . 80",
            "external-local4 192.168.50.200 . tcp . 80",
            "no-local-endpoints4 192.168.50.200 . tcp . 80",
            "source-ranged4 192.168.50.200 . tcp . 80",
            "source-allowed4 192.168.50.200 . tcp . 80 . 192.168.50.0/24",
            "endpoints4 192.168.50.200 . tcp . 80 . 98304 : 10.244.1.7 . 8080",
            "affinity-services6 fd00::81 . tcp . 80",
            "endpoints6 fd00::81 . tcp . 80 . 65536 : fd01::7 . 8080",
            "frontends4 #0102",
        ];
        let elements = elements.map(str::to_owned).to_vec();
        let told = lines(&ServiceElements { name: "default/web".into(), elements });
        assert_eq!(
            told,
            [
                "10.96.0.80:80/tcp -> 10.244.1.7:8080, 10.244.2.4:8080",
                "192.168.50.200:80/tcp -> no endpoint on this node; pods and nodes: 10.244.1.7:8080 \
                 (externalTrafficPolicy Local; from 192.168.50.0/24 only)",
                "[fd00::80]:53/udp -> no endpoints",
                "[fd00::81]:80/tcp -> [fd01::7]:8080 (sessionAffinity ClientIP)",
                "frontends4 #0102",
            ]
        );
    }
}
