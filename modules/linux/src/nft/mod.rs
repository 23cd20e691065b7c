//! Our nftables table, through the `nft` command: rules are text for the reader of a plan and for the kernel alike. By
//! netlink go elements, rules that nft cannot read, and the question whether anything but elements has changed.

pub mod elements;
mod fingerprint;
mod parse;
pub mod rules;
mod script;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use homelab_model::{Change, NftChain, NodeObject, Spec, ours};

use crate::error::{Error, netlink};
use crate::netlink::Socket;
use crate::process::{Running, complaint};
pub use fingerprint::{Fingerprint, fingerprint};
pub use parse::parse_table;
pub use script::{Script, script};

/// Where `nft` may be: the search path of a bare SSH session often lacks the second half.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// The `nft` command, if it is installed.
pub(crate) fn binary() -> Option<PathBuf> {
    DIRECTORIES.iter().map(|d| PathBuf::from(d).join("nft")).find(|path| path.exists())
}

fn command() -> Result<Command, Error> {
    let Some(path) = binary() else {
        return Err(Error::Nft { chain: None, message: "the command nft is missing".to_owned() });
    };
    Ok(Command::new(path))
}

fn failed(error: io::Error) -> Error {
    Error::Nft { chain: None, message: error.to_string() }
}

/// A running `nft list`.
#[derive(Debug)]
pub(crate) struct Listing {
    running: Running,
}

impl Listing {
    /// Starts it; it inherits the caller's network namespace.
    pub(crate) fn start() -> Result<Listing, Error> {
        let mut command = command()?;
        command.args(["--stateless", "--numeric", "list", "table", "inet", ours::NFT_TABLE]);
        Running::start(&mut command).map(|running| Listing { running }).map_err(failed)
    }

    /// Waits for it. None if there is no such table.
    pub(crate) fn finish(self) -> Result<Option<Vec<NftChain>>, Error> {
        let output = self.running.finish().map_err(failed)?;
        if output.status.success() {
            return parse_table(&String::from_utf8_lossy(&output.stdout)).map(Some);
        }
        let message = complaint(&output);
        if message.contains("No such file or directory") {
            return Ok(None);
        }
        Err(Error::Nft { chain: None, message })
    }
}

/// Runs a script as one transaction.
fn run(text: &str) -> Result<(), Error> {
    let mut command = command()?;
    command.args(["-f", "-"]).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child.stdin.take();
    // nft reads all of its input before it says anything.
    let written = stdin.as_mut().map_or(Ok(()), |pipe| pipe.write_all(text.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    let message = complaint(&output);
    Err(Error::Nft { chain: script::chain_at_fault(text, &message), message })
}

/// Carries out changes of our table and its chains in one transaction; others are not looked at.
///
/// nft checks and the kernel commits all or nothing. What is gone already need not be deleted: `now` are the chains
/// that exist. Rules that nft cannot read follow in a transaction of their own.
pub(crate) fn apply(changes: &[&Change<NodeObject>], now: Option<&[NftChain]>) -> Result<(), Error> {
    let Script { text, by_netlink } = script(changes, now)?;
    let doing = "adding nftables rules";
    let socket = if by_netlink.is_empty() { None } else { Some(netlink(doing, Socket::netfilter())?) };
    if !text.is_empty() {
        run(&text)?;
    }
    // Two transactions do no harm: until the second, clients of IPv6 are not remembered, and all else is in place.
    socket.map_or(Ok(()), |mut socket| rules::append(&mut socket, ours::NFT_TABLE, &by_netlink))
}

/// Whether a change is one of our table's.
pub(crate) fn is_nft(change: &Change<NodeObject>) -> bool {
    let object = change.after().or(change.before());
    object.is_some_and(|o| matches!(o.spec, Spec::NftTable(_) | Spec::NftChain(_)))
}
