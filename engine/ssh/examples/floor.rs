//! The floor of the engine's benchmark: to each address at once, bare ssh2 connects and runs `true`.
//! `floor KEY ADDRESS...`; host keys are not looked at, nothing is configured.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;

fn visit(key: &str, address: &str) -> Result<i32, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect((address, 22))?;
    stream.set_nodelay(true)?;
    let mut session = ssh2::Session::new()?;
    session.set_tcp_stream(stream);
    session.handshake()?;
    session.userauth_pubkey_file("root", None, Path::new(key), None)?;
    let mut channel = session.channel_session()?;
    channel.exec("true")?;
    channel.read_to_string(&mut String::new())?;
    channel.wait_close()?;
    Ok(channel.exit_status()?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((key, addresses)) = arguments.split_first() else {
        return Err("usage: floor KEY ADDRESS...".into());
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = addresses.iter().map(|a| scope.spawn(move || visit(key, a))).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for result in results {
        match result {
            Ok(Ok(0)) => {}
            Ok(Ok(status)) => return Err(format!("true ended with {status}").into()),
            Ok(Err(error)) => return Err(error.to_string().into()),
            Err(_) => return Err("a thread failed".into()),
        }
    }
    Ok(())
}
