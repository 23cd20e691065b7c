//! Opens a session again and again, and prints what each stage took:
//! `cargo run --release -p homelab-ssh --example open -- SSH_CONFIG HOST [COUNT [COMMAND]]`

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use homelab_ssh::{SshOptions, SshTransport, Target, Transport};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(config), Some(host)) = (args.first(), args.get(1)) else {
        return Err("usage: open SSH_CONFIG HOST [COUNT [COMMAND]]".into());
    };
    let count = args.get(2).map_or(Ok(10), |n| n.parse())?;
    let command = args.get(3).map_or("true", String::as_str);
    let options = SshOptions {
        ssh_config_file: Some(config.into()),
        become_password: std::env::var("BECOME_PASSWORD").ok(),
        ..SshOptions::default()
    };
    let transport = SshTransport::new(options);
    let mut target =
        Target { name: host.clone(), address: IpAddr::V4(Ipv4Addr::LOCALHOST), ssh: Default::default() };
    target.ssh.host = Some(host.clone());
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let mut session = transport.open(&target, command)?;
        let mut out = Vec::new();
        session.read_to_end(&mut out)?;
        let status = session.finish();
        times.push(start.elapsed());
        eprintln!("{:?}: {} bytes, status {status:?}", start.elapsed(), out.len());
    }
    times.sort();
    eprintln!("median {:?}, best {:?}", times[times.len() / 2], times[0]);
    Ok(())
}
