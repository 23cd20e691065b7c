//! The CNI plugin: carries out what [`homelab_cni`] decides. One process per request, no runtime, no threads, no
//! other program; one kernel request for the pair and its place on the bridge, one for its marks, one batch in the
//! pod.

mod attach;
mod bridge;
mod check;
pub(crate) mod guard;
pub(crate) mod hostport;
mod lost;
mod ports;
mod status;
mod store;

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use homelab_cni::{CniError, Code, Request, Version, error_version, version_json};
use homelab_model::ours;

pub(crate) use attach::{Sandboxed, forget, sandboxes};
pub(crate) use lost::recover;
pub(crate) use store::mark_of;

/// Longest standard input, bytes: a GC request names every container of a node.
const INPUT_MAX: u64 = 16 << 20;

/// Whether this process was started as the CNI plugin: by its name, or by a runtime under any name.
pub(crate) fn is_called() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name() == Some(ours::CNI_PLUGIN.as_ref())
        || std::env::var_os("CNI_COMMAND").is_some()
}

/// Answers the runtime's request: parameters in the environment, configuration on standard input, the answer on
/// standard output; exit code 1 with an error there.
pub(crate) fn run() -> ExitCode {
    let env = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    if std::env::var_os("CNI_COMMAND").is_none() {
        // As the reference plugins do when a person calls them.
        let versions: Vec<&str> = Version::ALL.into_iter().map(Version::as_str).collect();
        let about = format!(
            "CNI homelab plugin v{}\nCNI protocol versions supported: {}\n",
            env!("CARGO_PKG_VERSION"),
            versions.join(", ")
        );
        let _ = io::stderr().write_all(about.as_bytes());
        return ExitCode::SUCCESS;
    }
    let mut stdin = Vec::new();
    let result = read(&mut stdin).and_then(|()| answer(&env, &stdin));
    let (text, code) = match result {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(error_version(&stdin)), ExitCode::FAILURE),
    };
    // Nobody is left to tell if this fails.
    let _ = io::stdout().write_all(text.as_bytes());
    code
}

fn read(stdin: &mut Vec<u8>) -> Result<(), CniError> {
    io::stdin()
        .take(INPUT_MAX)
        .read_to_end(stdin)
        .map(|_| ())
        .map_err(|error| CniError::with(Code::Io, "standard input cannot be read", error))
}

fn answer(env: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<String, CniError> {
    match Request::parse(env, stdin)? {
        Request::Add { base, network, attachment, sandbox, wishes, previous } => {
            attach::add(&base, &network, &attachment, &sandbox, (&wishes, &previous))
        }
        Request::Del { base, attachment, guarded } => {
            attach::del(&base, &attachment, guarded).map(|()| String::new())
        }
        Request::Check { base, network, attachment, sandbox, prev } => {
            check::check(&base, &network, &attachment, &sandbox, &prev).map(|()| String::new())
        }
        Request::Status { base, network } => status::status(&base, &network).map(|()| String::new()),
        Request::Gc { base, valid } => attach::gc(&base, &valid).map(|()| String::new()),
        Request::Version { version } => Ok(version_json(&version)),
    }
}

/// All attachments of this boot, in all networks below `data_dir` ([`ours::IPAM`]). What cannot be read is left out.
pub(crate) fn attachments(data_dir: &Path) -> Vec<homelab_model::AttachmentFact> {
    let stores = store::Store::all(data_dir).unwrap_or_default();
    stores.iter().flat_map(|store| store.attachments().unwrap_or_default()).collect()
}

/// All attachments whose links `is_there` knows, in all networks and of whichever boot: the agent of a node that is a container
/// may see another boot's name than the runtime beside it.
pub(crate) fn attachments_with_links(
    data_dir: &Path,
    is_there: impl Fn(&str) -> bool,
) -> Vec<homelab_model::AttachmentFact> {
    let stores = store::Store::of_every_boot(data_dir).unwrap_or_default();
    let all = stores.iter().flat_map(|store| store.attachments().unwrap_or_default());
    all.filter(|attachment| is_there(&attachment.link)).collect()
}

/// Frees addresses whose pods are gone without a DEL, in all networks below `data_dir` ([`ours::IPAM`]); says how
/// many. No reference plugin does it and containerd calls no GC: the agent does, now and then.
pub(crate) fn sweep(data_dir: &Path) -> Result<usize, CniError> {
    attach::sweep(data_dir)
}
