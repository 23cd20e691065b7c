//! The peer: a ruleset of the form that kube-proxy makes in its nftables mode. A chain per service and per endpoint,
//! verdict maps that lead there, marks for masquerade. Services have the names that ours have.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use homelab_model::service::Service;

use crate::time::{Cost, cost};

/// The longest that a load may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Milliseconds of a load that is mostly the start of nft.
const SMALL: f64 = 200.0;

const TABLE: &str = "ip kube-proxy";

/// Everything that does not depend on services.
const BASE: &str = r#"
table ip kube-proxy {
    comment "rules for kube-proxy";
    set cluster-ips { type ipv4_addr; comment "Active ClusterIPs"; }
    set nodeport-ips { type ipv4_addr; comment "IPs that accept NodePort traffic"; elements = { 192.168.50.11 }; }
    map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
    map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
    map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
    map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
    map service-nodeports { type inet_proto . inet_service : verdict; }
    chain filter-prerouting-pre-dnat { type filter hook prerouting priority -110; ct state new jump firewall-check; }
    chain filter-output-pre-dnat { type filter hook output priority -110; ct state new jump firewall-check; }
    chain filter-input { type filter hook input priority 0;
        ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }
    chain filter-forward { type filter hook forward priority 0;
        ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
    chain filter-output { type filter hook output priority 0;
        ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
    chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
    chain nat-output { type nat hook output priority -100; jump services; }
    chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
    chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
    chain masquerading { meta mark and 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }
    chain reject-chain { reject; }
    chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
    chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
    chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
    chain cluster-ips-check { ip daddr @cluster-ips reject; ip daddr 10.96.0.0/12 drop; }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }
}
"#;

/// Eight letters that depend on a name, as kube-proxy puts before it.
fn hash(name: &str) -> String {
    let number =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (0..8).map(|n| char::from(b'A' + u8::try_from((number >> (n * 5)) % 26).unwrap())).collect()
}

fn service_chain(service: &Service) -> String {
    let base = format!("{}/tcp/", service.full_name());
    format!("service-{}-{base}", hash(&base))
}

fn endpoint_chain(service: &Service, address: IpAddr) -> String {
    let base = format!("{}/tcp/__{address}/8080", service.full_name());
    format!("endpoint-{}-{base}", hash(&base))
}

fn chain(text: &mut String, name: &str) {
    let _ = writeln!(text, "add chain {TABLE} {name}\nflush chain {TABLE} {name}");
}

fn rule(text: &mut String, chain: &str, rule: &str) {
    let _ = writeln!(text, "add rule {TABLE} {chain} {rule}");
}

/// The rules of a service's own chain.
fn service_rules(text: &mut String, service: &Service) {
    let name = service_chain(service);
    let vip = service.cluster_ips[0];
    rule(
        text,
        &name,
        &format!("ip daddr {vip} tcp dport 80 ip saddr != 10.128.0.0/10 jump mark-for-masquerade"),
    );
    let to = |(n, e): (usize, _)| format!("{n} : goto {}", endpoint_chain(service, e));
    let to: Vec<String> = service.endpoints.iter().map(|e| e.address).enumerate().map(to).collect();
    rule(text, &name, &format!("numgen random mod {} vmap {{ {} }}", to.len(), to.join(" , ")));
}

fn endpoint_rules(text: &mut String, service: &Service, address: IpAddr) {
    let name = endpoint_chain(service, address);
    rule(text, &name, &format!("ip saddr {address} jump mark-for-masquerade"));
    rule(text, &name, &format!("meta l4proto tcp dnat to {address}:8080"));
}

/// Adds a service.
pub(crate) fn add(text: &mut String, service: &Service) {
    for endpoint in &service.endpoints {
        chain(text, &endpoint_chain(service, endpoint.address));
    }
    chain(text, &service_chain(service));
    let vip = service.cluster_ips[0];
    let _ = writeln!(text, "add element {TABLE} cluster-ips {{ {vip} }}");
    let to = service_chain(service);
    let _ = writeln!(text, "add element {TABLE} service-ips {{ {vip} . tcp . 80 : goto {to} }}");
    service_rules(text, service);
    for endpoint in &service.endpoints {
        endpoint_rules(text, service, endpoint.address);
    }
}

/// Takes a service away. Its chains go with the next transaction ([`forget`]), as kube-proxy has it.
pub(crate) fn remove(text: &mut String, service: &Service) -> Vec<String> {
    let vip = service.cluster_ips[0];
    let _ = writeln!(text, "delete element {TABLE} cluster-ips {{ {vip} }}");
    let _ = writeln!(text, "delete element {TABLE} service-ips {{ {vip} . tcp . 80 }}");
    let mut stale = vec![service_chain(service)];
    stale.extend(service.endpoints.iter().map(|e| endpoint_chain(service, e.address)));
    for name in &stale {
        let _ = writeln!(text, "flush chain {TABLE} {name}");
    }
    stale
}

/// Gives a service its endpoint `now` for `before`.
pub(crate) fn change(text: &mut String, before: &Service, now: &Service) -> Vec<String> {
    let has = |service: &Service, address| service.endpoints.iter().any(|e| e.address == address);
    let new: Vec<IpAddr> = now.endpoints.iter().map(|e| e.address).filter(|a| !has(before, *a)).collect();
    new.iter().for_each(|address| chain(text, &endpoint_chain(now, *address)));
    chain(text, &service_chain(now));
    service_rules(text, now);
    new.iter().for_each(|address| endpoint_rules(text, now, *address));
    let gone = before.endpoints.iter().map(|e| e.address).filter(|a| !has(now, *a));
    let stale: Vec<String> = gone.map(|address| endpoint_chain(before, address)).collect();
    for name in &stale {
        let _ = writeln!(text, "flush chain {TABLE} {name}");
    }
    stale
}

/// Deletes chains that nothing leads to any more.
pub(crate) fn forget(text: &mut String, stale: &[String]) {
    for name in stale {
        let _ = writeln!(text, "delete chain {TABLE} {name}");
    }
}

/// The whole ruleset.
fn text(services: &[Service]) -> String {
    let mut text = BASE.to_owned();
    services.iter().for_each(|service| add(&mut text, service));
    text
}

/// How long the last load took, milliseconds, and the number that this depends on.
static LAST: Mutex<Option<(f64, f64)>> = Mutex::new(None);

/// How long the load of `services` will take by what the last one took, milliseconds.
pub(crate) fn expected(services: &[Service]) -> f64 {
    let last = *LAST.lock().unwrap();
    last.map_or(0.0, |(steps, took)| took * self::steps(services) / steps)
}

/// For each anonymous map, one of a service, the kernel goes through the whole transaction.
fn steps(services: &[Service]) -> f64 {
    let entries: usize = services.iter().map(|service| 8 + 3 * service.endpoints.len()).sum();
    services.len() as f64 * entries as f64
}

/// Loads the whole ruleset. What took longer than [`LIMIT`] and was stopped, or would take longer and is not tried, is
/// an error that says so.
pub(crate) fn load(services: &[Service]) -> Result<Cost, String> {
    let (expected, limit) = (expected(services), LIMIT.as_secs_f64() * 1e3);
    // A busy machine may well take twice as long.
    if expected > limit / 2.0 {
        let seconds = expected / 1e3;
        return Err(format!("not tried, it would take about {seconds:.0} s by what fewer took"));
    }
    let (took, done) = cost(|| run(&text(services)));
    // A small one says nothing of large ones.
    if took.wall > SMALL {
        *LAST.lock().unwrap() = Some((steps(services), took.wall));
    }
    if done { Ok(took) } else { Err(format!("stopped after {:.0} s", limit / 1e3)) }
}

/// Has nft carry out `text` in one transaction. False if it took longer than [`LIMIT`] and was stopped.
pub(crate) fn run(text: &str) -> bool {
    let mut command = Command::new("nft");
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    let mut stdin = child.stdin.take().unwrap();
    let start = Instant::now();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    // Short loads are not to be longer for the waiting.
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "nft refuses the peer's ruleset");
            return true;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4)
            .min(Duration::from_millis(20))
            .min(start.elapsed() / 50 + Duration::from_micros(200));
    }
}
