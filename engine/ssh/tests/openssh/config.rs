use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use homelab_ssh::{SshTransport, Transport, TransportError};

use crate::server::{Sshd, error, free_port, target, text, user};

/// A jump host and a node, as two sshds; the node's client knows both.
fn pair() -> (Sshd, Sshd) {
    let jump = Sshd::start();
    let node = Sshd::start();
    jump.authorize_public(&fs::read_to_string(node.path("id.pub")).unwrap());
    node.write_known(&format!("{}{}", node.known(), jump.known()));
    (jump, node)
}

#[test]
fn an_alias_of_the_users_configuration() {
    let sshd = Sshd::start();
    sshd.configure(&format!("Host server7\n  HostName 127.0.0.1\nHost *\n  Port {}\n", sshd.port));
    let mut target = target();
    // 192.0.2.1 must not be asked for: the alias says where to connect.
    target.address = "192.0.2.1".parse().unwrap();
    target.ssh.host = Some("server7".to_owned());
    assert_eq!(text(&mut *sshd.transport().open(&target, "echo in").unwrap()), "in\n");
}

#[test]
fn host_and_match_blocks_of_the_address() {
    let sshd = Sshd::start();
    let port = sshd.port;
    for block in ["Host 127.0.0.*", "Match host 127.0.0.1", "Match originalhost 127.0.0.1 exec true"] {
        // The block's value comes first, so it wins over the wrong one that follows.
        let text = format!("{block}\n  Port {port}\nHost *\n  Port 1\n");
        fs::write(sshd.path("part"), text).unwrap();
        sshd.configure(&format!("Include {}\n", sshd.path("part").display()));
        assert_eq!(sshd.run("echo in"), "in\n", "{block}");
    }
}

#[test]
fn homelab_yaml_wins() {
    let sshd = Sshd::start();
    sshd.configure("Port 1\nUser nobody\nHostName 192.0.2.1\nProxyCommand false\nConnectTimeout 2\n");
    let mut target = target();
    target.ssh.port = Some(sshd.port);
    target.ssh.user = Some(user());
    target.ssh.jump = Some("none".to_owned());
    // HostName of the user's configuration still holds for an address that homelab.yaml gives.
    let mut options = sshd.options();
    options.connect_timeout = None;
    assert!(SshTransport::new(options).open(&target, "true").is_err());
    sshd.configure("Port 1\nUser nobody\n");
    assert_eq!(text(&mut *sshd.transport().open(&target, "echo in").unwrap()), "in\n");
}

#[test]
fn without_a_configuration() {
    let sshd = Sshd::start();
    let mut options = sshd.options();
    options.use_ssh_config = false;
    options.ssh_config_file = None;
    options.known_hosts_file = Some(sshd.path("known_hosts"));
    let mut target = target();
    target.ssh.port = Some(sshd.port);
    target.ssh.user = Some(user());
    target.ssh.identity = Some(sshd.path("id").display().to_string());
    assert_eq!(text(&mut *SshTransport::new(options).open(&target, "echo in").unwrap()), "in\n");
}

#[test]
fn a_broken_configuration_is_named() {
    let sshd = Sshd::start();
    fs::write(sshd.path("ssh_config"), "Portt 22\n").unwrap();
    match sshd.error() {
        TransportError::Config(text) => {
            assert!(text.contains("ssh_config") && text.contains("portt"), "{text}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn jump_of_the_users_configuration() {
    let (jump, node) = pair();
    node.configure(&format!(
        "Host 127.0.0.1\n  ProxyJump hop\nHost hop\n  HostName localhost\n  HostKeyAlias {}\n  Port {}\n",
        jump.name(),
        jump.port
    ));
    assert_eq!(node.run("echo in"), "in\n");
    assert!(jump.log().contains("Accepted publickey"));
}

#[test]
fn jump_of_homelab_yaml() {
    let (jump, node) = pair();
    let mut target = target();
    target.ssh.jump = Some(format!("{}@127.0.0.1:{}", user(), jump.port));
    target.ssh.port = Some(node.port);
    assert_eq!(text(&mut *node.transport().open(&target, "echo in").unwrap()), "in\n");
    assert!(jump.log().contains("Accepted publickey"));
    // The session is over, so its way through the jump host is, too.
    let start = Instant::now();
    while !jump.log().contains("Received disconnect") {
        assert!(start.elapsed() < Duration::from_secs(30), "{}", jump.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Client -> first -> second -> node.
fn chain() -> (Sshd, Sshd, Sshd) {
    let (first, node) = pair();
    let second = Sshd::start();
    second.authorize_public(&fs::read_to_string(node.path("id.pub")).unwrap());
    node.write_known(&format!("{}{}", node.known(), second.known()));
    node.configure(&format!("ProxyJump 127.0.0.1:{},127.0.0.1:{}\n", first.port, second.port));
    // The hops themselves must not jump.
    let text = fs::read_to_string(node.path("ssh_config")).unwrap();
    fs::write(
        node.path("ssh_config"),
        text.replacen("ProxyJump", "Host node\n  HostName 127.0.0.1\n  ProxyJump", 1),
    )
    .unwrap();
    (first, second, node)
}

#[test]
fn jump_over_two() {
    let (first, second, node) = chain();
    let mut target = target();
    target.ssh.host = Some("node".to_owned());
    let mut session = node.transport().open(&target, "cat").unwrap();
    // More than every window and buffer on the way.
    let data: Vec<u8> = (0..8 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    session.write_all(&data).unwrap();
    let mut back = vec![0; data.len()];
    session.read_exact(&mut back).unwrap();
    assert!(back == data);
    assert_eq!(session.finish(), Some(0));
    for hop in [&first, &second] {
        assert!(hop.log().contains("Accepted publickey"));
    }
    // The second hop sees the first hop's connection; host keys are checked at every hop.
    node.write_known(&format!(
        "{} {}\n{} {}\n",
        first.name(),
        first.host_key("ed25519"),
        node.name(),
        node.host_key("ed25519")
    ));
    match error(node.transport().open(&target, "true")) {
        TransportError::HostKeyUnknown { host, .. } => assert_eq!(host, second.name()),
        other => panic!("{other}"),
    }
}

#[test]
fn jump_in_circles() {
    let sshd = Sshd::start();
    sshd.configure(&format!("ProxyJump 127.0.0.1:{}\n", sshd.port));
    match sshd.error() {
        TransportError::Config(text) => assert!(text.contains("circles") || text.contains("loop"), "{text}"),
        other => panic!("{other}"),
    }
}

#[test]
fn jump_to_nowhere() {
    let (jump, node) = pair();
    let mut target = target();
    target.ssh.jump = Some(format!("127.0.0.1:{}", jump.port));
    let port = free_port();
    target.ssh.port = Some(port);
    match error(node.transport().open(&target, "true")) {
        TransportError::Connect { endpoint, reason } => {
            assert_eq!(endpoint, format!("127.0.0.1:{port}"));
            assert!(reason.contains(&format!("127.0.0.1:{} cannot reach it", jump.port)), "{reason}");
        }
        other => panic!("{other}"),
    }
    // And a jump host that is not there.
    target.ssh.jump = Some(format!("127.0.0.1:{}", free_port()));
    match error(node.transport().open(&target, "true")) {
        TransportError::Connect { reason, .. } => assert_eq!(reason, "Connection refused"),
        other => panic!("{other}"),
    }
}

#[test]
fn proxy_command() {
    let (jump, node) = pair();
    let config = node.path("ssh_config");
    node.configure(&format!(
        "Match host 127.0.0.1 exec \"test %p = {}\"\n  ProxyCommand ssh -F {} -o BatchMode=yes -p {} -W %h:%p 127.0.0.1\n",
        node.port,
        config.display(),
        jump.port
    ));
    let mut target = target();
    target.ssh.port = Some(node.port);
    assert_eq!(text(&mut *node.transport().open(&target, "echo in").unwrap()), "in\n");
    assert!(jump.log().contains("Accepted publickey"));
    node.configure("ProxyCommand echo no way >&2; exit 1\n");
    let said = error(node.transport().open(&target, "true")).to_string();
    assert!(said.contains("handshake") && said.contains("no way"), "{said}");
}
