//! Environment and standard input as a typed request.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::{self, Base, Network, Version};
use crate::names::{check_name, is_ifname};
use crate::previous::{self, PrevResult, Previous};
use crate::wishes::{self, Wishes};
use crate::{CniError, Code};

/// A network interface of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// A network namespace as the runtime names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// `CNI_NETNS`.
    pub path: PathBuf,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub may_be_own: bool,
}

/// What the runtime wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Attach a container.
    Add {
        /// Configuration.
        base: Base,
        /// Configuration.
        network: Network,
        /// What to attach.
        attachment: Attachment,
        /// Where it is.
        sandbox: Sandbox,
        /// What is asked beyond that.
        wishes: Wishes,
        /// What the plugins before this one answered.
        previous: Previous,
    },
    /// Detach a container, tolerating absence of everything.
    Del {
        /// Configuration.
        base: Base,
        /// What to detach.
        attachment: Attachment,
        /// Whether pods of the network are guarded (`macspoofchk`).
        guarded: bool,
    },
    /// Verify an attachment.
    Check {
        /// Configuration.
        base: Base,
        /// Configuration.
        network: Network,
        /// What to verify.
        attachment: Attachment,
        /// Where it is.
        sandbox: Sandbox,
        /// What ADD said.
        prev: PrevResult,
    },
    /// Could an ADD succeed now?
    Status {
        /// Configuration.
        base: Base,
        /// Configuration.
        network: Network,
    },
    /// Drop all attachments of the network but these.
    Gc {
        /// Configuration.
        base: Base,
        /// What stays.
        valid: Vec<Attachment>,
    },
    /// Which versions are spoken?
    Version {
        /// `cniVersion` of the input, to be repeated.
        version: String,
    },
}

impl Request {
    /// The request in these environment variables and this standard input. What is not UTF-8 in a variable is given as
    /// U+FFFD.
    pub fn parse(env: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Request, CniError> {
        let command = env("CNI_COMMAND").unwrap_or_default();
        match command.as_str() {
            "ADD" | "DEL" | "CHECK" | "STATUS" | "GC" => {}
            "VERSION" => {
                // Runtimes of 0.2.0 and 0.3.x send nothing.
                let empty = stdin.iter().all(u8::is_ascii_whitespace);
                let map = if empty { Map::new() } else { config::decode(stdin)? };
                let version = map.get("cniVersion").and_then(Value::as_str);
                let version = version.unwrap_or(Version::V1_1_0.as_str()).to_owned();
                return Ok(Request::Version { version });
            }
            other => {
                return Err(CniError::with(
                    Code::Environment,
                    "CNI_COMMAND is none of ADD, DEL, CHECK, STATUS, GC, VERSION",
                    format!("{other:?}"),
                ));
            }
        }
        let map = config::decode(stdin)?;
        let version = config::version(&map)?;
        let since = match command.as_str() {
            "CHECK" => Version::V0_4_0,
            "STATUS" | "GC" => Version::V1_1_0,
            _ => Version::V0_1_0,
        };
        if version < since {
            return Err(CniError::with(
                Code::Version,
                format!("{command} exists since CNI {}", since.as_str()),
                format!("configuration is {}", version.as_str()),
            ));
        }
        let base = config::base(&map)?;
        match command.as_str() {
            "STATUS" => Ok(Request::Status { base, network: config::network(&map)? }),
            "GC" => Ok(Request::Gc { base, valid: valid_attachments(&map)? }),
            // The configuration may have changed since ADD, or be broken by now: a container must still go.
            "DEL" => {
                let guarded = config::guarded(&map);
                Ok(Request::Del { base, attachment: attachment(env)?, guarded })
            }
            _ => {
                let attachment = attachment(env)?;
                let sandbox = sandbox(env)?;
                let network = config::network(&map)?;
                let wishes = wishes::wishes(&variable(env, "CNI_ARGS")?.unwrap_or_default(), &map)?;
                if command == "ADD" {
                    let previous = previous::previous(&map, base.version)?;
                    return Ok(Request::Add { base, network, attachment, sandbox, wishes, previous });
                }
                let prev = previous::prev_result(&map, &attachment.ifname)?;
                Ok(Request::Check { base, network, attachment, sandbox, prev })
            }
        }
    }
}

/// The version in which to answer an error to this standard input.
pub fn error_version(stdin: &[u8]) -> &'static str {
    let requested = config::decode(stdin).and_then(|map| config::version(&map));
    requested.unwrap_or(Version::V1_1_0).as_str()
}

/// A variable, whose value would mean something else if a part of it were left out.
fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<String>, CniError> {
    match env(name) {
        Some(value) if value.contains(char::REPLACEMENT_CHARACTER) => {
            let message = format!("environment variable {name} is not UTF-8");
            Err(CniError::with(Code::Environment, message, format!("{value:?}")))
        }
        value => Ok(value),
    }
}

fn required(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<String, CniError> {
    variable(env, name)?
        .filter(|value| !value.is_empty())
        .ok_or_else(|| CniError::new(Code::Environment, format!("environment variable {name} is missing")))
}

/// Errors name what is wrong by `names`.
fn checked(container: String, ifname: String, code: Code, names: [&str; 2]) -> Result<Attachment, CniError> {
    // Container ids are 64 digits in practice; a bound keeps them inside paths and attributes.
    if !check_name(&container, 512) {
        let message = format!(
            "{} must begin with a letter or digit and hold only letters, digits, '_', '.', '-'",
            names[0]
        );
        return Err(CniError::with(code, message, format!("{container:?}")));
    }
    if !is_ifname(&ifname) {
        let message = format!("{} must have 1 to 15 bytes without '/', ':', '%' or white space", names[1]);
        return Err(CniError::with(code, message, format!("{ifname:?}")));
    }
    Ok(Attachment { container, ifname })
}

fn attachment(env: &dyn Fn(&str) -> Option<String>) -> Result<Attachment, CniError> {
    let names = ["CNI_CONTAINERID", "CNI_IFNAME"];
    checked(required(env, names[0])?, required(env, names[1])?, Code::Environment, names)
}

fn sandbox(env: &dyn Fn(&str) -> Option<String>) -> Result<Sandbox, CniError> {
    let path = PathBuf::from(required(env, "CNI_NETNS")?);
    if !path.is_absolute() {
        return Err(CniError::with(Code::Environment, "CNI_NETNS is not an absolute path", path.display()));
    }
    Ok(Sandbox { path, may_be_own: env("CNI_NETNS_OVERRIDE").is_some_and(|value| truth(&value)) })
}

/// What Go's `strconv.ParseBool` takes as true, as the reference implementation reads it.
fn truth(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "TRUE" | "true" | "True")
}

fn valid_attachments(map: &Map<String, Value>) -> Result<Vec<Attachment>, CniError> {
    // Without the list everything would be garbage.
    let Some(Value::Array(items)) = map.get("cni.dev/valid-attachments") else {
        return Err(CniError::new(Code::Config, "GC needs field cni.dev/valid-attachments"));
    };
    items
        .iter()
        .map(|item| {
            let field = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
            let names = ["containerID", "ifname"];
            checked(field(names[0]), field(names[1]), Code::Config, names)
        })
        .collect()
}
