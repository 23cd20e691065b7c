//! Firewalls whose policy is to drop what a node forwards.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{in_new_netns, run};
use homelab_linux::{Node, Root};
use homelab_model::ForwardDrop;

/// Does it as iptables does, with iptables where it is installed.
fn firewall(iptables: &str, nft: &str) {
    if Command::new("iptables-nft").arg("--version").output().is_ok_and(|o| o.status.success()) {
        run(&format!("set -e\n{iptables}"));
    } else {
        run(&format!("nft '{nft}'"));
    }
}

/// `family table chain (maker)`.
fn drops(node: &mut Node) -> Vec<String> {
    let text =
        |d: ForwardDrop| format!("{} {} {} ({})", d.family, d.table, d.chain, d.maker.unwrap_or_default());
    node.facts().unwrap().forward_drops.into_iter().map(text).collect()
}

fn node(directory: &tempfile::TempDir) -> Node {
    Node::open(Root::at(directory.path())).unwrap()
}

#[test]
fn policy_drop_is_seen_until_rules_let_the_bridge_through() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = node(&directory);
        assert_eq!(drops(&mut node), [""; 0]);
        firewall(
            "iptables-nft -P FORWARD ACCEPT; iptables-nft -P INPUT DROP",
            "add table ip filter; \
             add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }; \
             add chain ip filter INPUT { type filter hook input priority 0; policy drop; }",
        );
        assert_eq!(drops(&mut node), [""; 0], "only forwarding counts, and only drop");
        firewall(
            "iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER; iptables-nft -P FORWARD DROP",
            "add chain ip filter DOCKER-USER; add rule ip filter FORWARD counter jump DOCKER-USER; \
             add chain ip filter FORWARD { policy drop; }",
        );
        assert_eq!(drops(&mut node), ["ip filter FORWARD (docker)"]);
        firewall(
            "iptables-nft -I DOCKER-USER -i homelab0 -j ACCEPT; iptables-nft -I DOCKER-USER -o homelab01 -j ACCEPT
             iptables-nft -I DOCKER-USER -o homelab0 -j DROP",
            "add rule ip filter DOCKER-USER iifname homelab0 counter accept; \
             add rule ip filter DOCKER-USER oifname homelab01 counter accept; \
             add rule ip filter DOCKER-USER oifname homelab0 counter drop",
        );
        assert_eq!(drops(&mut node), ["ip filter FORWARD (docker)"], "one way is not both");
        firewall(
            "iptables-nft -I DOCKER-USER -o homelab0 -j ACCEPT",
            "insert rule ip filter DOCKER-USER oifname homelab0 counter accept",
        );
        assert_eq!(drops(&mut node), [""; 0]);
    });
}

#[test]
fn every_family_is_looked_at() {
    in_new_netns(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut node = node(&directory);
        run("nft 'add table ip6 filter; add chain ip6 filter ufw6-user-forward; \
             add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }'");
        run(
            "nft 'add table inet mine; add chain inet mine f { type filter hook forward priority 5; policy drop; }'",
        );
        run(
            "nft 'add table bridge b; add chain bridge b f { type filter hook forward priority 5; policy drop; }'",
        );
        let mut found = drops(&mut node);
        found.sort();
        assert_eq!(found, ["inet mine f ()", "ip6 filter FORWARD (ufw)"]);
    });
}
