//! The CNI plugin's operations on the real kernel.

mod common;

use common::{OtherNetns, in_new_netns, run};
use homelab_linux::pod::{Netns, PodRoute, PodSocket, Veth};
use homelab_linux::{VethEnd, parse_mac};

fn veth<'a>(bridge: u32, host: &'a str, pod: &'a str) -> Veth<'a> {
    Veth {
        host: VethEnd { name: host, mac: None },
        pod: VethEnd { name: pod, mac: parse_mac("0a:00:00:00:00:07") },
        mtu: 1400,
        bridge,
        alias: "homelab-pod test",
        hairpin: true,
        isolated: true,
    }
}

#[test]
fn a_pod_is_attached_configured_and_taken_away() {
    in_new_netns(|| {
        run(
            "ip link add homelab0 type bridge && ip addr add 10.244.1.1/24 dev homelab0 && ip link set homelab0 up",
        );
        let pod = OtherNetns::new();
        let netns = Netns::open(&pod.path).unwrap();
        let mut here = PodSocket::open().unwrap();
        let mut inside = netns.socket().unwrap();

        let bridge = here.link("homelab0").unwrap().unwrap().index;
        here.create_veth(&netns, &veth(bridge, "hl-a", "eth0")).unwrap();
        let made = here.link("hl-a").unwrap().unwrap();
        assert!(made.up && made.hairpin && made.master == Some(bridge), "{made:?}");
        assert_eq!((made.name.as_str(), made.mtu, made.alias.as_str()), ("hl-a", 1400, "homelab-pod test"));
        assert_eq!(here.ports("homelab0").unwrap().len(), 1);
        assert!(here.ports("missing").unwrap().is_empty());
        let port = run("bridge -d link show dev hl-a");
        assert!(port.contains("hairpin on") && port.contains("isolated on"), "{port}");

        let addresses = ["10.244.1.2/24".parse().unwrap(), "fd00:1::2/64".parse().unwrap()];
        let routes = [
            PodRoute {
                destination: "0.0.0.0/0".parse().unwrap(),
                via: Some("10.244.1.1".parse().unwrap()),
                onlink: false,
                metric: 0,
            },
            PodRoute {
                destination: "::/0".parse().unwrap(),
                via: Some("fe80::1".parse().unwrap()),
                onlink: true,
                metric: 0,
            },
        ];
        assert_eq!(inside.configure("eth0", &addresses, &routes).unwrap(), [true, true]);
        assert_eq!(inside.configure("eth0", &addresses, &routes).expect("twice is once"), [false, false]);
        let eth0 = inside.link("eth0").unwrap().unwrap();
        assert_eq!((eth0.mac.as_str(), eth0.mtu, eth0.up), ("0a:00:00:00:00:07", 1400, true));
        assert!(inside.link("lo").unwrap().unwrap().up);
        let held = inside.addresses("eth0").unwrap();
        assert!(addresses.iter().all(|a| held.contains(a)), "{held:?}");
        let found = inside.routes("eth0").unwrap();
        for route in routes {
            assert!(found.contains(&(route.destination, route.via)), "{found:?}");
        }
        netns.run(|| run("ping -c1 -W2 10.244.1.1")).unwrap();

        let again = here.create_veth(&netns, &veth(bridge, "hl-a", "eth1")).unwrap_err();
        assert!(again.to_string().contains("File exists"), "{again}");
        assert!(here.link("hl-a").unwrap().is_some(), "a refused pair takes nothing away");
        assert!(here.delete_link("hl-a").unwrap());
        assert!(!here.delete_link("hl-a").unwrap());
        assert!(inside.link("eth0").unwrap().is_none(), "the other end goes with it");
    });
}

#[test]
fn errors_name_what_was_tried() {
    in_new_netns(|| {
        let pod = OtherNetns::new();
        let netns = Netns::open(&pod.path).unwrap();
        let mut here = PodSocket::open().unwrap();
        let error = here.create_veth(&netns, &veth(4711, "hl-b", "eth0")).unwrap_err().to_string();
        assert!(error.contains("hl-b") && error.contains("eth0"), "{error}");
        assert!(here.link("hl-b").unwrap().is_none());
        assert!(!netns.is_own().unwrap());
        let missing = Netns::open("/proc/self/ns/none".as_ref()).unwrap_err().to_string();
        assert!(missing.contains("/proc/self/ns/none"), "{missing}");
        let wrong = Netns::open("/proc/self/status".as_ref()).unwrap_err().to_string();
        assert!(wrong.contains("/proc/self/status"), "{wrong}");
    });
}

#[test]
fn a_bridge_that_is_made_again_takes_its_pods_back() {
    in_new_netns(|| {
        let spec = common::objects::spec(0);
        let bridge: Vec<_> = common::objects::objects(&spec)
            .into_iter()
            .filter(|o| matches!(&o.spec, homelab_model::Spec::Link(l) if l.name == "homelab0"))
            .collect();
        let changes = homelab_model::diff(&[], &bridge);
        let files = tempfile::tempdir().unwrap();
        let mut node = homelab_linux::Node::open(homelab_linux::Root::at(files.path())).unwrap();
        node.apply_all(&changes, &mut |_| {}).unwrap();
        let pod = OtherNetns::new();
        let netns = Netns::open(&pod.path).unwrap();
        let mut here = PodSocket::open().unwrap();
        let index = here.link("homelab0").unwrap().unwrap().index;
        let alias = format!("{}c1/eth0", homelab_model::ours::POD_ALIAS);
        here.create_veth(&netns, &Veth { alias: &alias, isolated: false, ..veth(index, "hl-a", "eth0") })
            .unwrap();
        run("ip link add stranger type veth peer name other; ip link del homelab0");
        assert_eq!(here.link("hl-a").unwrap().unwrap().master, None);

        node.apply_all(&changes, &mut |_| {}).unwrap();
        let ports = here.ports("homelab0").unwrap();
        assert_eq!(ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["hl-a"]);
        assert!(ports[0].hairpin, "{ports:?}");

        // Nothing of homelab remains: the pods' network goes too, and nobody else's.
        node.apply_all(&homelab_model::diff(&bridge, &[]), &mut |_| {}).unwrap();
        node.farewell().unwrap();
        assert_eq!(here.link("hl-a").unwrap(), None);
        assert!(here.link("stranger").unwrap().is_some());
    });
}
