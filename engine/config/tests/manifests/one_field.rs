//! A good Service and a good EndpointSlice, broken in one field at a time.

use homelab_config::{Manifests, Severity};

use super::read;

pub(crate) const GOOD: &str = r#"apiVersion: v1
kind: Service
metadata: {name: neighbour, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.81, ports: [{port: 80, nodePort: 30081}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: neighbour-1, namespace: shop, labels: {kubernetes.io/service-name: neighbour}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.9]}]
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations: {}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80, "fd00:10:96::80"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports:
    - name: http
      protocol: TCP
      port: 80
      targetPort: web
      nodePort: 30080
    - name: dns
      protocol: UDP
      port: 53
      targetPort: 5353
      nodePort: 30053
  externalIPs: [192.168.50.77]
  loadBalancerIP: 192.168.50.200
  loadBalancerSourceRanges: [192.168.50.0/24]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Cluster
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  healthCheckNodePort: 32000
  allocateLoadBalancerNodePorts: true
  trafficDistribution: PreferClose
  publishNotReadyAddresses: false
  selector: {app: web}
status:
  loadBalancer:
    ingress: [{ip: 192.168.50.200, ipMode: VIP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-abcde
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports:
  - {name: http, protocol: TCP, port: 8080}
  - {name: dns, protocol: UDP, port: 5353}
endpoints:
  - addresses: [10.244.1.5]
    conditions: {ready: true, serving: true, terminating: false}
    hostname: web-0
    nodeName: node1
    zone: attic
    hints:
      forZones: [{name: attic}]
      forNodes: [{name: node1}]
"#;

/// What is replaced, by what, the code of the problem and the text that is underlined.
type Case = (&'static str, &'static str, &'static str, &'static str);

const SERVICE: &[Case] = &[
    // metadata
    (
        "name: web\n  namespace: shop\n  labels: {app",
        "name: Web\n  namespace: shop\n  labels: {app",
        "name",
        "Web",
    ),
    (
        "name: web\n  namespace: shop\n  labels: {app",
        "name: 7\n  namespace: shop\n  labels: {app",
        "type",
        "7",
    ),
    (
        "name: web\n  namespace: shop\n  labels: {app",
        "namespace: shop\n  labels: {app",
        "missing-key",
        "namespace: shop",
    ),
    (
        "name: web\n  namespace: shop\n  labels: {app",
        "name: web\n  namespace: s.p\n  labels: {app",
        "name",
        "s.p",
    ),
    ("labels: {app: web}\n", "labels: [app]\n", "type", "[app]"),
    // type
    ("type: LoadBalancer", "type: Loadbalancer", "value", "Loadbalancer"),
    ("type: LoadBalancer", "type: 1", "type", "1"),
    // addresses
    ("clusterIP: 10.96.0.80\n", "clusterIP: 10.96.0\n", "address", "10.96.0"),
    ("clusterIP: 10.96.0.80\n", "clusterIP: 1\n", "type", "1"),
    ("clusterIP: 10.96.0.80\n", "clusterIP: 10.96.0.79\n", "cluster-ip", "10.96.0.80"),
    ("  clusterIP: 10.96.0.80\n", "", "cluster-ip", "10.96.0.80"),
    ("clusterIP: 10.96.0.80\n", "clusterIP: None\n", "headless", "None"),
    ("clusterIPs: [10.96.0.80, ", "clusterIPs: [10.96.00.80, ", "address", "10.96.00.80"),
    ("clusterIPs: [10.96.0.80, \"fd00:10:96::80\"]", "clusterIPs: 10.96.0.80", "type", "10.96.0.80"),
    ("\"fd00:10:96::80\"", "\"::ffff:10.96.0.80\"", "address", "\"::ffff:10.96.0.80\""),
    ("\"fd00:10:96::80\"", "10.96.0.82", "families", "10.96.0.82"),
    ("\"fd00:10:96::80\"", "\"fd00:10:96::80\", 10.96.0.82", "too-many", "10.96.0.82"),
    ("\"fd00:10:96::80\"", "\"fd00:99::80\"", "cluster-ip", "\"fd00:99::80\""),
    ("\"fd00:10:96::80\"", "\"fd00:10:96::\"", "cluster-ip", "\"fd00:10:96::\""),
    ("\"fd00:10:96::80\"", "[]", "type", "[]"),
    // families
    ("ipFamilies: [IPv4, IPv6]", "ipFamilies: [IPv4, ipv6]", "value", "ipv6"),
    ("ipFamilies: [IPv4, IPv6]", "ipFamilies: [IPv4, IPv4]", "families", "IPv4"),
    ("ipFamilies: [IPv4, IPv6]", "ipFamilies: [IPv6, IPv4]", "families", "10.96.0.80"),
    ("ipFamilies: [IPv4, IPv6]", "ipFamilies: IPv4", "type", "IPv4"),
    ("ipFamilies: [IPv4, IPv6]", "ipFamilies: [4]", "type", "4"),
    ("ipFamilyPolicy: RequireDualStack", "ipFamilyPolicy: SingleStack", "families", "SingleStack"),
    ("ipFamilyPolicy: RequireDualStack", "x: y", "families", "IPv6"),
    ("ipFamilyPolicy: RequireDualStack", "ipFamilyPolicy: Dual", "value", "Dual"),
    ("ipFamilyPolicy: RequireDualStack", "ipFamilyPolicy: ''", "value", "''"),
    // ports
    ("name: http\n      p", "name: Http\n      p", "name", "Http"),
    ("name: http\n      p", "name: dns\n      p", "duplicate-name", "dns"),
    ("name: http\n      p", "name: ''\n      p", "port-name", "name"),
    ("name: http\n      p", "p", "port-name", "protocol: TCP"),
    ("protocol: TCP\n", "protocol: tcp\n", "value", "tcp"),
    ("protocol: TCP\n", "protocol: 6\n", "type", "6"),
    ("port: 80\n", "port: 0\n", "range", "0"),
    ("port: 80\n", "port: 65536\n", "range", "65536"),
    ("port: 80\n", "port: -1\n", "range", "-1"),
    ("port: 80\n", "port: 1.5\n", "type", "1.5"),
    ("port: 80\n", "port: \"80\"\n", "type", "\"80\""),
    ("port: 80\n", "port: 080\n", "leading-zero", "080"),
    ("      port: 80\n", "", "missing-key", "name: http"),
    ("protocol: UDP\n      port: 53\n", "protocol: TCP\n      port: 80\n", "duplicate-port", "80"),
    ("targetPort: web\n", "targetPort: a_b\n", "name", "a_b"),
    ("targetPort: web\n", "targetPort: 65536\n", "range", "65536"),
    ("targetPort: web\n", "targetPort: [1]\n", "type", "[1]"),
    ("nodePort: 30080\n", "nodePort: 80\n", "range", "80"),
    ("nodePort: 30080\n", "nodePort: 32768\n", "range", "32768"),
    ("nodePort: 30080\n", "nodePort: x\n", "type", "x"),
    ("nodePort: 30080\n", "nodePort: 30081\n", "duplicate-port", "30081"),
    (
        "protocol: UDP\n      port: 53\n      targetPort: 5353\n      nodePort: 30053",
        "port: 53\n      nodePort: 30080",
        "duplicate-port",
        "30080",
    ),
    // from outside
    ("externalIPs: [192.168.50.77]", "externalIPs: [127.0.0.1]", "address", "127.0.0.1"),
    ("externalIPs: [192.168.50.77]", "externalIPs: [192.168.050.77]", "address", "192.168.050.77"),
    ("externalIPs: [192.168.50.77]", "externalIPs: 192.168.50.77", "type", "192.168.50.77"),
    ("externalIPs: [192.168.50.77]", "externalIPs: [null]", "type", "null"),
    ("loadBalancerIP: 192.168.50.200", "loadBalancerIP: 192.168.50.0/24", "address", "192.168.50.0/24"),
    ("loadBalancerIP: 192.168.50.200", "loadBalancerIP: 224.0.0.9", "address", "224.0.0.9"),
    ("loadBalancerIP: 192.168.50.200", "loadBalancerIP: 5", "type", "5"),
    ("[192.168.50.0/24]", "[192.168.50.0]", "cidr", "192.168.50.0"),
    ("[192.168.50.0/24]", "[192.168.50.0/33]", "cidr", "192.168.50.0/33"),
    ("[192.168.50.0/24]", "192.168.50.0/24", "type", "192.168.50.0/24"),
    ("externalTrafficPolicy: Local", "externalTrafficPolicy: local", "value", "local"),
    ("externalTrafficPolicy: Local", "externalTrafficPolicy: 1", "type", "1"),
    ("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster", "service-type", "32000"),
    ("internalTrafficPolicy: Cluster", "internalTrafficPolicy: Node", "value", "Node"),
    ("internalTrafficPolicy: Cluster", "internalTrafficPolicy: ''", "value", "''"),
    ("internalTrafficPolicy: Cluster", "internalTrafficPolicy: {}", "type", "{}"),
    ("sessionAffinity: ClientIP", "sessionAffinity: ClientIp", "value", "ClientIp"),
    ("sessionAffinity: ClientIP", "sessionAffinity: 1", "type", "1"),
    (
        "sessionAffinity: ClientIP",
        "sessionAffinity: None",
        "session-affinity",
        "{clientIP: {timeoutSeconds: 600}}",
    ),
    ("timeoutSeconds: 600", "timeoutSeconds: 0", "range", "0"),
    ("timeoutSeconds: 600", "timeoutSeconds: 86401", "range", "86401"),
    ("timeoutSeconds: 600", "timeoutSeconds: 1h", "type", "1h"),
    ("{clientIP: {timeoutSeconds: 600}}", "600", "type", "600"),
    ("{clientIP: {timeoutSeconds: 600}}", "{clientIP: 600}", "type", "600"),
    ("healthCheckNodePort: 32000", "healthCheckNodePort: 80", "range", "80"),
    ("healthCheckNodePort: 32000", "healthCheckNodePort: x", "type", "x"),
    ("healthCheckNodePort: 32000", "healthCheckNodePort: 30081", "duplicate-port", "30081"),
    ("allocateLoadBalancerNodePorts: true", "allocateLoadBalancerNodePorts: yes", "type", "yes"),
    ("trafficDistribution: PreferClose", "trafficDistribution: Near", "value", "Near"),
    ("trafficDistribution: PreferClose", "trafficDistribution: 1", "type", "1"),
    ("trafficDistribution: PreferClose", "loadBalancerClass: a b", "name", "a b"),
    ("trafficDistribution: PreferClose", "loadBalancerClass: 1", "type", "1"),
    ("publishNotReadyAddresses: false", "publishNotReadyAddresses: 0", "type", "0"),
    ("selector: {app: web}", "selector: {app: 1}", "type", "1"),
    ("selector: {app: web}", "selector: web", "type", "web"),
    ("[{ip: 192.168.50.200, ipMode: VIP}]", "[{ip: nowhere, ipMode: VIP}]", "address", "nowhere"),
    ("[{ip: 192.168.50.200, ipMode: VIP}]", "[{ip: 192.168.50.200, ipMode: Vip}]", "value", "Vip"),
    ("[{ip: 192.168.50.200, ipMode: VIP}]", "[{ipMode: VIP}]", "value", "VIP"),
    ("[{ip: 192.168.50.200, ipMode: VIP}]", "[192.168.50.200]", "type", "192.168.50.200"),
    (
        "[{ip: 192.168.50.200, ipMode: VIP}]",
        "[{ip: 192.168.50.200, ip: 192.168.50.201}]",
        "duplicate-key",
        "ip",
    ),
    // whole blocks
    ("spec:\n  type: LoadBalancer", "spec: 1\nx:\n  type: LoadBalancer", "type", "1"),
    ("spec:\n  type: LoadBalancer", "x:\n  type: LoadBalancer", "missing-key", "apiVersion: v1"),
    ("  ports:\n    - name: http", "  x:\n    - name: http", "missing-key", "type: LoadBalancer"),
    ("  ports:\n    - name: http", "  ports: []\n  x:\n    - name: http", "missing-key", "ports"),
    ("  ports:\n    - name: http", "  ports: 80\n  x:\n    - name: http", "type", "80"),
    ("  ports:\n    - name: http", "  ports:\n    - 80\n    - name: http", "type", "80"),
];

const SLICE: &[Case] = &[
    ("name: web-abcde", "name: web_abcde", "name", "web_abcde"),
    ("  name: web-abcde\n", "", "missing-key", "namespace: shop"),
    ("service-name: web}", "service-name: 1}", "type", "1"),
    ("service-name: web}", "service-name: ''}", "no-service", "''"),
    ("service-name: web}", "service: web}", "no-service", "web-abcde"),
    ("service-name: web}", "service-name: wep}", "no-service", "wep"),
    ("addressType: IPv4\nports:\n", "addressType: IPv6\nports:\n", "families", "10.244.1.5"),
    ("addressType: IPv4\nports:\n", "addressType: ipv4\nports:\n", "value", "ipv4"),
    ("addressType: IPv4\nports:\n", "addressType: FQDN\nports:\n", "address-type", "FQDN"),
    ("addressType: IPv4\nports:\n", "addressType: 4\nports:\n", "type", "4"),
    ("addressType: IPv4\nports:\n", "ports:\n", "missing-key", "apiVersion: discovery.k8s.io/v1"),
    ("{name: http, protocol: TCP, port: 8080}", "{name: HTTP, protocol: TCP, port: 8080}", "name", "HTTP"),
    (
        "{name: http, protocol: TCP, port: 8080}",
        "{name: dns, protocol: TCP, port: 8080}",
        "duplicate-name",
        "dns",
    ),
    ("{name: http, protocol: TCP, port: 8080}", "{name: http, protocol: ICMP, port: 8080}", "value", "ICMP"),
    (
        "{name: http, protocol: TCP, port: 8080}",
        "{name: http, protocol: TCP}",
        "missing-key",
        "{name: http, protocol: TCP}",
    ),
    ("{name: http, protocol: TCP, port: 8080}", "{name: http, port: null}", "missing-key", "port"),
    ("{name: http, protocol: TCP, port: 8080}", "{name: http, port: 0}", "range", "0"),
    ("{name: http, protocol: TCP, port: 8080}", "{name: http, port: 65536}", "range", "65536"),
    ("{name: http, protocol: TCP, port: 8080}", "{name: http, port: web}", "type", "web"),
    ("{name: http, protocol: TCP, port: 8080}", "8080", "type", "8080"),
    ("ports:\n  - {name: http", "ports: {}\nx:\n  - {name: http", "type", "{}"),
    ("[10.244.1.5]", "[10.244.1]", "address", "10.244.1"),
    ("[10.244.1.5]", "[10.244.1.05]", "address", "10.244.1.05"),
    ("[10.244.1.5]", "[\"::ffff:10.244.1.5\"]", "address", "\"::ffff:10.244.1.5\""),
    ("[10.244.1.5]", "[127.0.0.1]", "address", "127.0.0.1"),
    ("[10.244.1.5]", "[169.254.169.254]", "address", "169.254.169.254"),
    ("[10.244.1.5]", "[224.0.0.1]", "address", "224.0.0.1"),
    ("[10.244.1.5]", "[0.0.0.0]", "address", "0.0.0.0"),
    ("[10.244.1.5]", "[10.244.1.5, \"fd00::5\"]", "families", "\"fd00::5\""),
    ("[10.244.1.5]", "[]", "missing-key", "addresses"),
    ("[10.244.1.5]", "10.244.1.5", "type", "10.244.1.5"),
    ("[10.244.1.5]", "[1]", "type", "1"),
    ("- addresses: [10.244.1.5]", "- 10.244.1.5\n  - addresses: [10.244.1.5]", "type", "10.244.1.5"),
    ("endpoints:\n  - ", "endpoints: x\nx:\n  - ", "type", "x"),
    ("{ready: true, serving", "{ready: \"true\", serving", "type", "\"true\""),
    ("serving: true", "serving: 1", "type", "1"),
    ("terminating: false", "terminating: no", "type", "no"),
    ("{ready: true, serving: true, terminating: false}", "ready", "type", "ready"),
    ("hostname: web-0", "hostname: web.0", "name", "web.0"),
    ("nodeName: node1", "nodeName: Node1", "name", "Node1"),
    ("nodeName: node1", "nodeName: ''", "name", "''"),
    ("nodeName: node1", "nodeName: 1", "type", "1"),
    ("zone: attic", "zone: the attic", "name", "the attic"),
    ("zone: attic", "zone: 1", "type", "1"),
    ("forZones: [{name: attic}]", "forZones: [{name: a/b}]", "name", "a/b"),
    ("forZones: [{name: attic}]", "forZones: [{}]", "missing-key", "{}"),
    ("forZones: [{name: attic}]", "forZones: [{name: a}, {name: a}]", "duplicate-name", "a"),
    ("forZones: [{name: attic}]", "forZones: [attic]", "type", "attic"),
    ("forNodes: [{name: node1}]", "forNodes: [{name: Node1}]", "name", "Node1"),
    ("forNodes: [{name: node1}]", "forNodes: node1", "type", "node1"),
    (
        "forZones: [{name: attic}]",
        "forZones: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: f}, {name: g}, {name: h}, {name: i}]",
        "too-many",
        "forZones",
    ),
];

fn broken(find: &str, replace: &str) -> String {
    assert_eq!(GOOD.matches(find).count(), 1, "{find:?} is not there once");
    GOOD.replacen(find, replace, 1)
}

/// What is wrong with `found`, which must tell `code` at `underlined` and nothing worse than a warning.
fn told(text: &str, found: &Manifests, code: &str, underlined: &str) -> Vec<String> {
    let told: Vec<(&str, &str)> =
        found.problems.iter().map(|p| (p.code, &text[p.offset..p.offset + p.length])).collect();
    let mut wrong = Vec::new();
    if !told.contains(&(code, underlined)) {
        wrong.push(format!("{code} at {underlined:?} is not in {told:?}"));
    }
    if found.problems.iter().any(|p| p.severity != Severity::Warning) {
        wrong.push("there is an error".into());
    }
    wrong
}

/// The number of endpoints of a service, if it is there.
fn endpoints(found: &Manifests, name: &str) -> Option<usize> {
    found.services.iter().find(|s| s.service.full_name() == name).map(|s| s.service.endpoints.len())
}

fn check(cases: &[Case], web: Option<usize>) {
    let mut wrong = Vec::new();
    for (find, replace, code, underlined) in cases {
        let text = broken(find, replace);
        let found = read(&text);
        let mut why = told(&text, &found, code, underlined);
        let counts = (endpoints(&found, "shop/web"), endpoints(&found, "shop/neighbour"));
        if counts != (web, Some(1)) {
            why.push(format!("endpoints of both services: {counts:?}"));
        }
        wrong.extend(why.iter().map(|why| format!("{find:?} -> {replace:?}: {why}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_good_file_is_good() {
    let found = read(GOOD);
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert_eq!((endpoints(&found, "shop/web"), endpoints(&found, "shop/neighbour")), (Some(1), Some(1)));
}

#[test]
fn a_service_with_one_wrong_field_is_left_out_alone() {
    check(SERVICE, None);
}

#[test]
fn a_slice_with_one_wrong_field_is_left_out_alone() {
    check(SLICE, Some(0));
}

/// That a service is without endpoints because they were refused needs no word of its own.
#[test]
fn one_mistake_makes_one_problem() {
    for (find, replace) in [
        ("[10.244.1.5]", "[127.0.0.1]"),
        ("addressType: IPv4\nports:\n  - {name: http", "addressType: FQDN\nports:\n  - {name: http"),
    ] {
        let found = read(&broken(find, replace));
        assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    }
    // Nor that a slice belongs to a service that was refused.
    for (find, replace) in [("port: 80\n", "port: 0\n"), ("type: LoadBalancer", "type: X")] {
        let found = read(&broken(find, replace));
        assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    }
}

#[test]
fn fields_of_one_type_are_refused_for_another() {
    let cases = [
        ("ports: [{port: 80, nodePort: 30001}]", "service-type", "30001"),
        ("ports: [{port: 80}]\n  externalTrafficPolicy: Cluster", "service-type", "Cluster"),
        (
            "ports: [{port: 80}]\n  externalTrafficPolicy: Local\n  type: NodePort\n  healthCheckNodePort: 30001",
            "service-type",
            "30001",
        ),
        ("ports: [{port: 80}]\n  allocateLoadBalancerNodePorts: false", "service-type", "false"),
        ("ports: [{port: 80}]\n  type: NodePort\n  loadBalancerClass: a/b", "service-type", "a/b"),
        ("ports: [{port: 80}]\n  loadBalancerSourceRanges: [10.0.0.0/8]", "service-type", "10.0.0.0/8"),
        ("ports: [{port: 80}]\n  type: NodePort\n  clusterIP: None", "headless", "None"),
        ("ports: [{port: 80}]\n  clusterIP: None", "headless", "None"),
        ("ports: [{port: 80}]\n  clusterIPs: [None]", "headless", "None"),
        ("type: ExternalName\n  externalName: example.org", "external-name", "ExternalName"),
    ];
    for (spec, code, underlined) in cases {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n  {spec}\n");
        let found = read(&text);
        assert_eq!(told(&text, &found, code, underlined), Vec::<String>::new(), "{spec}");
        assert_eq!((found.services.len(), found.problems.len()), (0, 1), "{spec}: {:?}", found.problems);
    }
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    \
                service.beta.kubernetes.io/load-balancer-source-ranges: RANGES\nspec:\n  type: LoadBalancer\n  ports: [{port: 80}]\n";
    for (text, code, underlined) in [
        (text.replace("RANGES", "10.0.0.0/8, ten"), "cidr", "10.0.0.0/8, ten"),
        (text.replace("RANGES", "10"), "type", "10"),
        (
            text.replace("RANGES", "10.0.0.0/8").replace("LoadBalancer", "NodePort"),
            "service-type",
            "10.0.0.0/8",
        ),
        (
            text.replace("    service", "   - service").replace("RANGES", "x"),
            "type",
            "- service.beta.kubernetes.io/load-balancer-source-ranges: x",
        ),
    ] {
        assert_eq!(told(&text, &read(&text), code, underlined), Vec::<String>::new(), "{text}");
        assert!(read(&text).services.is_empty(), "{text}");
    }
}

#[test]
fn what_was_right_in_one_type_counts_as_in_kubernetes() {
    for spec in [
        "ports: [{port: 80}]\n  externalIPs: [192.168.50.77]\n  externalTrafficPolicy: Local",
        "ports: [{port: 80}]\n  loadBalancerIP: not-read-here",
        "ports: [{port: 80, nodePort: 0}]\n  healthCheckNodePort: 0\n  clusterIP: ''\n  externalTrafficPolicy: ''",
        "ports: [{port: 80}, {name: b, port: 81}]"
            .replace("{port: 80}", "{name: a, port: 81, protocol: UDP}")
            .as_str(),
        "ports: [{port: 80}]\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: null",
    ] {
        let found = read(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n  {spec}\n"));
        assert!(found.problems.is_empty() && found.services.len() == 1, "{spec}: {:?}", found.problems);
    }
}

#[test]
fn lists_are_as_long_as_in_kubernetes() {
    let slice = |ports: usize, endpoints: usize, addresses: usize| {
        let ports: Vec<String> = (0..ports).map(|n| format!("{{name: p{n}, port: 80}}")).collect();
        let address: Vec<String> = (1..=addresses).map(|n| format!("10.0.0.{n}")).collect();
        let endpoint = format!("{{addresses: [{}]}}", address.join(", "));
        let slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {{kubernetes.io/service-name: a}}}}\n\
             addressType: IPv4\nports: [{}]\nendpoints: [{}]\n",
            ports.join(", "),
            vec![endpoint; endpoints].join(", ")
        );
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{name: p0, port: 80}}]}}\n---\n{slice}"
        )
    };
    let good = slice(20_000, 1000, 1);
    assert!(read(&good).problems.is_empty(), "{:?}", read(&good).problems);
    assert!(read(&slice(1, 1, 100)).problems.is_empty());
    for (text, underlined) in
        [(slice(20_001, 1, 1), "ports"), (slice(1, 1001, 1), "endpoints"), (slice(1, 1, 101), "addresses")]
    {
        assert_eq!(told(&text, &read(&text), "too-many", underlined), Vec::<String>::new());
        assert_eq!(endpoints(&read(&text), "default/a"), Some(0));
    }
}
