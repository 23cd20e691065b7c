//! What to do about errors of the layers below, which only say what is wrong.

use homelab_driver::{ApplyError, BinariesError, Failure, Fault, NodeError, RotateError, TransportError};
use homelab_model::ApiError;

/// What to do about a change that is on trial.
pub(crate) const ON_TRIAL: &str = "homelab confirm keeps that change, homelab rollback takes it back now";

/// What to do next about a node's error.
pub(crate) fn hints(error: &NodeError) -> Vec<String> {
    match error {
        NodeError::Transport(error) => transport(error),
        NodeError::Bootstrap { output, .. } => vec![bootstrap(output)],
        NodeError::NoBinary { arch, .. } => {
            vec![format!(
                "build one: cargo xtask dist --arch {arch}; or name its directory: --node-binaries DIR"
            )]
        }
        NodeError::Binaries(error) => vec![binaries(error)],
        NodeError::Protocol { .. } => {
            vec!["use the same version of homelab and of its node binaries (cargo xtask dist)".to_owned()]
        }
        NodeError::WrongBinary { .. } => {
            vec!["run homelab apply: it installs the right binary; then find out who changed it".to_owned()]
        }
        NodeError::Broken { .. } => {
            vec!["run homelab plan to see how far it came; homelab apply goes on from there".to_owned()]
        }
        NodeError::Blocked(problems) => problems.iter().map(|p| p.help.clone()).collect(),
        NodeError::Failed(failure) => failed(failure),
        NodeError::Stale(_) => {
            vec!["somebody changed the node since it was looked at: run the command again".to_owned()]
        }
        NodeError::Unsettled(_) => vec![
            "look at the node: journalctl -u homelab-node; then run homelab plan to see what is left"
                .to_owned(),
        ],
        NodeError::OtherMachine(_) => vec!["nothing was changed there".to_owned()],
        NodeError::Busy(_) => vec![busy()],
        NodeError::Held { .. } => vec![ON_TRIAL.to_owned()],
        NodeError::CutOff(_) => vec![
            "is the tunnel's UDP port open between the nodes, and do all of them have the same VNI and port?"
                .to_owned(),
        ],
        NodeError::Unmakable(_) => {
            vec!["change homelab.yaml back to what it was then, and run homelab apply".to_owned()]
        }
        NodeError::WrongKey => vec![
            "somebody may have changed the key on the node: look at /etc/homelab there, then run homelab rotate-key"
                .to_owned(),
        ],
        NodeError::NoPassword(_) => vec![
            "name a file with it under the peer's `passwordFile` in the cluster file".to_owned(),
        ],
        NodeError::Unobserved(_) | NodeError::OutOfTurn | NodeError::Cancelled => Vec::new(),
    }
}

fn busy() -> String {
    "wait for it: --lock-timeout 10m; if nobody works there any more: homelab unlock --force".to_owned()
}

fn failed(failure: &Failure) -> Vec<String> {
    match failure.fault {
        Fault::Stale => vec!["run the command again".to_owned()],
        Fault::Irreversible => {
            vec![
                "nothing was changed: homelab changes only what it can take back; mend that first".to_owned(),
            ]
        }
        Fault::Open => vec![ON_TRIAL.to_owned()],
        Fault::NoTransaction => {
            vec!["it was confirmed or taken back before; homelab status says which".to_owned()]
        }
        Fault::NotLocked => {
            vec![
                "somebody took the lock away (homelab unlock), or the laptop slept; run the command again"
                    .to_owned(),
            ]
        }
        Fault::Error if !failure.undone => vec!["run homelab plan to see what is left to do".to_owned()],
        Fault::Error => Vec::new(),
    }
}

/// What to do next where an apply was not begun.
pub(crate) fn apply(error: &ApplyError) -> Vec<String> {
    match error {
        ApplyError::Busy { .. } => vec![busy()],
        ApplyError::Cancelled => Vec::new(),
        ApplyError::TooManyUnavailable { .. } => {
            vec!["bring those nodes back first, or allow more: --max-unavailable N".to_owned()]
        }
        ApplyError::OnlyTogether { nodes, .. } => vec![format!(
            "allow it, when it suits: --max-unavailable {}; pods lose the other nodes for some seconds",
            nodes.len()
        )],
        ApplyError::Kubernetes(error) => kubernetes(error),
        ApplyError::Keys { error, .. } | ApplyError::Passwords { error, .. } => hints(error),
    }
}

/// What to do next where the Kubernetes API cannot be worked with.
pub(crate) fn kubernetes(error: &ApiError) -> Vec<String> {
    let hint = match error {
        ApiError::Config(text) if text.contains("each node itself") || text.contains("in the clear") => {
            "name the URL that nodes use: kubernetes.server, e.g. https://192.168.50.11:6443"
        }
        ApiError::Config(text) if text.contains("insecure-skip-tls-verify") => {
            "name the file with the cluster's CA: kubernetes.ca (on a control plane /etc/kubernetes/pki/ca.crt)"
        }
        ApiError::Config(_) => {
            "kubernetes.kubeconfig and kubernetes.context name it, relative to the cluster file; kubectl config \
             get-contexts shows what there is"
        }
        ApiError::Plugin { .. } => "run it by hand, or log in again: kubectl get nodes must work here",
        ApiError::Unreachable { .. } => {
            "is the API server up, and is this the right address? kubectl get --raw /readyz asks it; nodes go on with \
             what they know"
        }
        ApiError::Tls { .. } => {
            "is it the right CA (kubernetes.ca, or the kubeconfig's), and has no certificate expired? kubeadm certs \
             check-expiration says it"
        }
        ApiError::Unauthorized { .. } => {
            "the credential may have expired: kubectl auth whoami; kubeadm certs renew admin.conf renews kubeadm's"
        }
        ApiError::Refused { code: 403, .. } => {
            "homelab needs a cluster administrator's credential here: what it gives to nodes it must have itself"
        }
        ApiError::Refused { .. } | ApiError::Answer { .. } => "the log of kube-apiserver may say more",
        ApiError::Foreign(_) => {
            "look at them with kubectl; delete them, or rename them, if nobody needs them"
        }
    };
    vec![hint.to_owned()]
}

/// What to do next where the membership key was not replaced.
pub(crate) fn rotate(error: &RotateError) -> Vec<String> {
    match error {
        RotateError::Plan(_) => Vec::new(),
        RotateError::Apply(error) => apply(error),
        RotateError::Unreachable(nodes) => {
            let mut all: Vec<String> = nodes.iter().flat_map(|(_, e)| hints(e)).collect();
            all.dedup();
            all.push("all nodes must be there for this; the old key stays good until then".to_owned());
            all
        }
        RotateError::NoKeys => vec!["homelab apply makes the first key".to_owned()],
        RotateError::Malformed(_) => {
            vec![
                "remove /etc/homelab/membership.keys on that node; homelab apply brings it the others' key"
                    .to_owned(),
            ]
        }
    }
}

fn bootstrap(output: &str) -> String {
    let said = |words: &str| output.contains(words);
    if said("can hold a program") {
        "make room in one of them, or mount one of them without noexec".to_owned()
    } else if said("not found") {
        "the node needs sh, coreutils (uname, mktemp, head, sha256sum) and gzip: apt install coreutils gzip"
            .to_owned()
    } else if said("No space left") {
        "free some space on the node: df -h /run /tmp /var/tmp".to_owned()
    } else {
        "try by hand: ssh to the node, become root and run sh -c 'uname -m'".to_owned()
    }
}

/// What to do next where no node binaries are found.
pub(crate) fn binaries(error: &BinariesError) -> String {
    match error {
        BinariesError::Missing { .. } => {
            "build them: cargo xtask dist; or name their directory: --node-binaries DIR".to_owned()
        }
        BinariesError::Read { .. } | BinariesError::Manifest { .. } => {
            "build them again: cargo xtask dist".to_owned()
        }
    }
}

fn transport(error: &TransportError) -> Vec<String> {
    match error {
        TransportError::Resolve { .. } => {
            vec!["correct the node's address or ssh.host in the cluster file".to_owned()]
        }
        TransportError::Connect { endpoint, .. } | TransportError::Timeout { endpoint, .. } => vec![format!(
            "is the node switched on, and does sshd listen on {endpoint}? The other nodes can be worked on without it"
        )],
        TransportError::HostKeyUnknown { host, known_hosts, port, .. } => vec![
            "compare the fingerprint with the node's own: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
                .to_owned(),
            format!("then add the key: ssh-keyscan -p {port} {} >> {known_hosts}", bare(host)),
            "or let homelab add it: --accept-new-host-keys".to_owned(),
        ],
        TransportError::HostKeyChanged { host, known_hosts, line, .. } => vec![
            "if you do not know why the key changed, someone may be in between: do not go on".to_owned(),
            format!("if the node was installed anew: ssh-keygen -f {known_hosts} -R '{host}' (line {line})"),
        ],
        TransportError::HostKeyRevoked { known_hosts, line, .. } => {
            vec![format!(
                "give the node a new host key, or see who revoked this one: {known_hosts}, line {line}"
            )]
        }
        TransportError::Auth { user, host, .. } => {
            let to = login(user, host);
            vec![
                format!("this must work without a password: ssh {to} true"),
                format!("put your key there: ssh-copy-id {to}; or name the right one: ssh.identity"),
            ]
        }
        TransportError::Key { path, .. } => {
            vec![format!("load it into your agent: ssh-add {path}; or name another key: ssh.identity")]
        }
        TransportError::Sudo { user, .. } => vec![
            "give the password by --become-password-file FILE, or run homelab on a terminal and it asks"
                .to_owned(),
            format!("or allow it without: echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}"),
        ],
        TransportError::Config(_) => vec!["see what ssh makes of it: ssh -G HOST".to_owned()],
        TransportError::Handshake { .. } | TransportError::Lost { .. } => {
            vec!["run the command again; on the node, journalctl -u ssh says more".to_owned()]
        }
    }
}

/// The host of known_hosts' `[host]:port`.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.split_once(']')).map_or(host, |(host, _)| host)
}

/// A user at an endpoint (`host:port`, `[address]:port`) as ssh and ssh-copy-id take it.
fn login(user: &str, endpoint: &str) -> String {
    match endpoint.rsplit_once(':') {
        Some((host, "22")) => format!("{user}@{}", bare(host)),
        Some((host, port)) => format!("-p {port} {user}@{}", bare(host)),
        None => format!("{user}@{endpoint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_host_key_comes_with_the_command_that_adds_it() {
        let error = TransportError::HostKeyUnknown {
            host: "[192.168.50.11]:2222".into(),
            algorithm: "ssh-ed25519".into(),
            fingerprint: "SHA256:x".into(),
            known_hosts: "/home/me/.ssh/known_hosts".into(),
            port: 2222,
        };
        let hints = hints(&NodeError::Transport(error)).join("\n");
        assert!(hints.contains("ssh-keyscan -p 2222 192.168.50.11 >> /home/me/.ssh/known_hosts"), "{hints}");
    }

    #[test]
    fn a_refused_key_comes_with_commands_that_ssh_understands() {
        for (host, login) in [
            ("192.168.50.11:22", "ssh root@192.168.50.11 true"),
            ("192.168.50.11:2222", "ssh -p 2222 root@192.168.50.11 true"),
            ("[fd00::1]:22", "ssh root@fd00::1 true"),
        ] {
            let error =
                TransportError::Auth { user: "root".into(), host: host.into(), tried: "~/.ssh/id".into() };
            let hints = hints(&NodeError::Transport(error)).join("\n");
            assert!(hints.contains(login), "{hints}");
        }
    }
}
