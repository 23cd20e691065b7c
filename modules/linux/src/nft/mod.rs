//! Our nftables table, through the `nft` command: rules are text for the reader of a plan and for the kernel alike. By
//! netlink go elements, rules that nft cannot read, and the question whether anything but elements has changed.

pub mod elements;
mod fingerprint;
mod parse;
pub mod rules;
mod script;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use homelab_model::{Change, NftChain, NodeObject, Spec};

use serde::{Deserialize, Serialize};

use crate::error::{Error, netlink};
use crate::netlink::Socket;
use crate::process::{Running, complaint};
pub use fingerprint::{Fingerprint, fingerprint};
pub use parse::parse_tables;
pub use script::{Script, script};

/// What there is of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Declarations of its sets and maps, sorted by name.
    pub sets: Vec<String>,
    /// Its chains.
    pub chains: Vec<NftChain>,
}

/// Tables by family and name.
pub type Tables = BTreeMap<String, Table>;

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

/// Running `nft list`, one for each table: of one that lists several, nft 1.0.6 reads only the last one's.
#[derive(Debug)]
pub(crate) struct Listing {
    running: Vec<Running>,
}

impl Listing {
    /// Starts them; they inherit the caller's network namespace.
    pub(crate) fn start(tables: &[&str]) -> Result<Listing, Error> {
        let start = |table: &&str| {
            let mut command = command()?;
            command.args(["--stateless", "--numeric", "--terse", "list", "table"]).args(table.split(' '));
            Running::start(&mut command).map_err(failed)
        };
        Ok(Listing { running: tables.iter().map(start).collect::<Result<_, _>>()? })
    }

    /// Waits for them.
    pub(crate) fn finish(self) -> Result<Tables, Error> {
        let mut tables = Tables::new();
        for running in self.running {
            let output = running.finish().map_err(failed)?;
            if !output.status.success() {
                return Err(Error::Nft { chain: None, message: complaint(&output) });
            }
            tables.append(&mut parse_tables(&String::from_utf8_lossy(&output.stdout))?);
        }
        Ok(tables)
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

/// Carries out changes of our tables and their chains in one transaction; others are not looked at.
///
/// nft checks and the kernel commits all or nothing. What is gone already need not be deleted: `now` are the tables
/// that exist. Rules that nft cannot read follow in a transaction of their own. Says how many transactions it took.
pub(crate) fn apply(changes: &[&Change<NodeObject>], now: &Tables) -> Result<u32, Error> {
    let Script { text, by_netlink } = script(changes, now)?;
    let doing = "adding nftables rules";
    let socket = if by_netlink.is_empty() { None } else { Some(netlink(doing, Socket::netfilter())?) };
    let mut transactions = 0;
    if !text.is_empty() {
        run(&text)?;
        transactions += 1;
    }
    // Two transactions do no harm: a table that is made has no services until both are through, and what they mend was
    // broken before.
    if let Some(mut socket) = socket {
        for (table, rules) in &by_netlink {
            rules::append(&mut socket, table, rules)?;
            transactions += 1;
        }
    }
    Ok(transactions)
}

/// Whether a change is one of our tables'.
pub(crate) fn is_nft(change: &Change<NodeObject>) -> bool {
    let object = change.after().or(change.before());
    object.is_some_and(|o| matches!(o.spec, Spec::NftTable(_) | Spec::NftChain(_)))
}
