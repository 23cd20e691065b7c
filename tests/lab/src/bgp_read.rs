//! What the router's BGP programs say of sessions and routes.

use crate::bgp::{BgpPath, BgpPaths, BgpProgram, BgpSessions};
use crate::{Error, Result};
use serde_json::{Value, value::Index};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Has a program tell its sessions.
pub(crate) fn sessions_script(program: BgpProgram) -> &'static str {
    match program {
        BgpProgram::Frr => "vtysh -c 'show bgp neighbors json'",
        // Times that it shows are a millisecond more or less at each look: what names a session is its connection.
        BgpProgram::Bird => "birdc show protocols all; ss -Htn state established 'sport = :179'",
        BgpProgram::Gobgp => "gobgp -j neighbor",
    }
}

/// Has a program tell its routes.
pub(crate) fn paths_script(program: BgpProgram) -> &'static str {
    match program {
        // Only a look at a single prefix shows all attributes.
        BgpProgram::Frr => {
            r#"for family in ipv4 ipv6; do
  set --
  for prefix in $(vtysh -c "show bgp $family unicast json" | jq -r '.routes // {} | keys[]'); do
    set -- "$@" -c "show bgp $family unicast $prefix json"
  done
  [ $# -eq 0 ] || vtysh "$@"
done"#
        }
        BgpProgram::Bird => "birdc show route all",
        BgpProgram::Gobgp => "gobgp -j global rib -a ipv4; gobgp -j global rib -a ipv6",
    }
}

/// Has a program tell whose routes it keeps.
pub(crate) fn kept_script(program: BgpProgram) -> &'static str {
    match program {
        BgpProgram::Frr => "vtysh -c 'show bgp ipv4 unicast json' -c 'show bgp ipv6 unicast json'",
        BgpProgram::Bird => "birdc show protocols all",
        BgpProgram::Gobgp => "true",
    }
}

/// Reads what [`kept_script`] says.
pub(crate) fn kept(program: BgpProgram, text: &str) -> Result<BTreeSet<IpAddr>> {
    match program {
        BgpProgram::Frr => {
            let all = values(text)?;
            let routes =
                all.iter().filter_map(|v| v["routes"].as_object()).flat_map(|routes| routes.values());
            let paths = routes.filter_map(Value::as_array).flatten().filter(|path| path["stale"] == true);
            paths.map(|path| ip(path["peerId"].as_str().unwrap_or_default())).collect()
        }
        BgpProgram::Bird => {
            let mut kept = BTreeSet::new();
            let mut neighbor = None;
            for line in text.lines().map(str::trim) {
                if let Some(address) = line.strip_prefix("Neighbor address:") {
                    neighbor = Some(ip(address.trim())?);
                } else if line == "Neighbor graceful restart active" {
                    kept.extend(neighbor);
                }
            }
            Ok(kept)
        }
        BgpProgram::Gobgp => Ok(BTreeSet::new()),
    }
}

/// Reads what [`sessions_script`] says.
pub(crate) fn sessions(program: BgpProgram, text: &str) -> Result<BgpSessions> {
    match program {
        BgpProgram::Frr => {
            let one = |(address, told): (&String, &Value)| {
                let up = told["bgpState"] == "Established";
                // The time of its beginning, which is shown too, is a second more or less at each look.
                let which = told["connectionsEstablished"].to_string();
                Ok((ip(address)?, up.then_some(which)))
            };
            let all = values(text)?;
            all.iter()
                .filter_map(Value::as_object)
                .flatten()
                .filter(|(_, v)| v.is_object())
                .map(one)
                .collect()
        }
        BgpProgram::Bird => Ok(bird_sessions(text)),
        BgpProgram::Gobgp => {
            let one = |told: &Value| {
                let up = told["state"]["session_state"] == 6;
                let address = word(told, "conf", "neighbor_address");
                Ok((ip(&address)?, up.then(|| told["timers"]["state"]["uptime"]["seconds"].to_string())))
            };
            values(text)?.iter().filter_map(Value::as_array).flatten().map(one).collect()
        }
    }
}

/// Reads what [`paths_script`] says.
pub(crate) fn paths(program: BgpProgram, text: &str) -> Result<BgpPaths> {
    let mut paths = match program {
        BgpProgram::Frr => frr_paths(text)?,
        BgpProgram::Bird => bird_paths(text)?,
        BgpProgram::Gobgp => gobgp_paths(text)?,
    };
    paths.values_mut().for_each(|list| list.sort());
    Ok(paths)
}

fn bird_sessions(text: &str) -> BgpSessions {
    let mut sessions = BgpSessions::new();
    let mut which = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(' ') && words.get(1) == Some(&"BGP") {
            which = (words.last() == Some(&"Established")).then(String::new);
        } else if let ["Neighbor", "address:", address] = words[..] {
            // A link-local address would have its interface behind it.
            if let Ok(address) = address.parse() {
                sessions.insert(address, which.take());
            }
        } else if let Some(Ok(peer)) = words.last().map(|word| word.parse::<std::net::SocketAddr>())
            && let Some(Some(name)) = sessions.get_mut(&peer.ip().to_canonical())
        {
            *name = peer.port().to_string();
        }
    }
    sessions
}

fn frr_paths(text: &str) -> Result<BgpPaths> {
    let mut paths = BgpPaths::new();
    for prefix in values(text)? {
        for path in list(&prefix, "paths") {
            let numbers = |key: &str| word(path, key, "string");
            let communities = numbers("community") + " " + &numbers("largeCommunity");
            let hops = list(path, "nexthops");
            let hop = hops.iter().find(|hop| hop["scope"] != "link-local").copied().unwrap_or(&Value::Null);
            let path = BgpPath {
                from: ip(&word(path, "peer", "peerId"))?,
                next_hop: ip(hop["ip"].as_str().unwrap_or_default())?,
                as_path: asns(word(path, "aspath", "string").split(' ')),
                local_pref: number(&path["locPrf"]).or(number(&path["localpref"])),
                communities: communities.split_whitespace().map(community).collect(),
            };
            paths.entry(prefix["prefix"].as_str().unwrap_or_default().to_owned()).or_default().push(path);
        }
    }
    Ok(paths)
}

fn bird_paths(text: &str) -> Result<BgpPaths> {
    let mut paths = BgpPaths::new();
    let mut prefix = "";
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.contains(&"unicast") {
            if !line.starts_with(char::is_whitespace) {
                prefix = words[0];
            }
            let path = BgpPath {
                from: std::net::Ipv4Addr::UNSPECIFIED.into(),
                next_hop: std::net::Ipv4Addr::UNSPECIFIED.into(),
                as_path: Vec::new(),
                local_pref: None,
                communities: BTreeSet::new(),
            };
            paths.entry(prefix.to_owned()).or_default().push(path);
            continue;
        }
        let Some(path) = paths.get_mut(prefix).and_then(|list| list.last_mut()) else { continue };
        match words[..] {
            ["via", hop, ..] => (path.from, path.next_hop) = (ip(hop)?, ip(hop)?),
            ["BGP.as_path:", ..] => path.as_path = asns(words[1..].iter().copied()),
            ["BGP.local_pref:", value] => path.local_pref = value.parse().ok(),
            ["BGP.community:" | "BGP.large_community:", ..] => {
                let (_, told) = line.split_once(':').unwrap_or_default();
                let all = told.split('(').filter_map(|one| one.trim().strip_suffix(')'));
                path.communities.extend(all.map(|one| one.replace(' ', "").replace(',', ":")));
            }
            _ => {}
        }
    }
    Ok(paths)
}

fn gobgp_paths(text: &str) -> Result<BgpPaths> {
    let mut paths = BgpPaths::new();
    for (prefix, told) in values(text)?.iter().filter_map(Value::as_object).flatten() {
        for told in told.as_array().into_iter().flatten() {
            let attribute = |kind: u8| list(told, "attrs").into_iter().find(|a| a["type"] == kind);
            let hop = attribute(3).or(attribute(14)).and_then(|a| a["nexthop"].as_str());
            let standard = attribute(8).map(|a| list(a, "communities")).unwrap_or_default();
            let large = attribute(32).map(|a| list(a, "value")).unwrap_or_default();
            let standard =
                standard.iter().filter_map(|v| v.as_u64()).map(|v| format!("{}:{}", v >> 16, v & 0xffff));
            let large = large.iter().map(|v| format!("{}:{}:{}", v["ASN"], v["LocalData1"], v["LocalData2"]));
            let segments = attribute(2).map(|a| list(a, "as_paths")).unwrap_or_default();
            let path = BgpPath {
                from: ip(told["neighbor-ip"].as_str().unwrap_or_default())?,
                next_hop: ip(hop.unwrap_or_default())?,
                as_path: segments.iter().flat_map(|s| list(s, "asns")).filter_map(number).collect(),
                local_pref: attribute(5).and_then(|a| number(&a["value"])),
                communities: standard.chain(large).collect(),
            };
            paths.entry(prefix.clone()).or_default().push(path);
        }
    }
    Ok(paths)
}

/// JSON values one after another.
fn values(text: &str) -> Result<Vec<Value>> {
    let all: std::result::Result<Vec<Value>, _> =
        serde_json::Deserializer::from_str(text).into_iter().collect();
    all.map_err(|error| Error::Usage(format!("the router's BGP says: {error}\n{text}")))
}

fn list(value: &Value, key: impl Index) -> Vec<&Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().collect()
}

fn word(value: &Value, outer: &str, key: &str) -> String {
    value[outer][key].as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| number.try_into().ok())
}

fn asns<'a>(words: impl Iterator<Item = &'a str>) -> Vec<u32> {
    words.filter_map(|word| word.parse().ok()).collect()
}

/// An address.
fn ip(text: &str) -> Result<IpAddr> {
    text.parse::<IpAddr>()
        .map_err(|_| Error::Usage(format!("the router's BGP says `{text}` where an address belongs")))
}

/// A community as a number: FRR has names for some (RFC 1997, RFC 8326, RFC 7999, RFC 3765).
fn community(word: &str) -> String {
    match word {
        "no-export" => "65535:65281",
        "no-advertise" => "65535:65282",
        "local-AS" => "65535:65283",
        "no-peer" => "65535:65284",
        "graceful-shutdown" => "65535:0",
        "blackhole" => "65535:666",
        other => other,
    }
    .to_owned()
}
