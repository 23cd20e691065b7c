//! Everything that a node should hold, composed from the modules.
//!
//! The laptop renders this to plan, and the agent renders it to repair: one definition of desired state.

mod bgp;
pub mod kubernetes;
mod peers;

use homelab_model::{Binary, Content, File, Module, NodeObject, NodeSpec, Scope, Spec, Symlink, Unit, ours};
use minijinja::{Environment, context};

pub use bgp::peers as bgp_peers;
/// Which node tells which router what: the laptop warns of addresses that nobody tells.
pub use homelab_speaker::bgp::{Can, peers_of, routes, unfit};
/// Which nodes may announce which address: the laptop warns of those that nobody may.
pub use homelab_speaker::candidates::{Candidate, candidates};
/// What the laptop needs of the tunnel to make a [`NodeSpec`].
pub use homelab_vtep::{mac as vtep_mac, overhead as vtep_overhead};
pub use peers::{changed_entries, with_peers, without_peers};

/// All objects of a node.
pub fn desired(spec: &NodeSpec) -> Vec<NodeObject> {
    let mut objects = foundation(spec);
    objects.extend(homelab_proxy::services(spec));
    objects
}

/// All objects of a node but its services, of which there may be thousands.
pub fn foundation(spec: &NodeSpec) -> Vec<NodeObject> {
    let mut objects = agent_objects(spec);
    objects.extend(bgp::objects(spec));
    objects.extend(homelab_vtep::objects(spec));
    objects.extend(homelab_cni::objects(spec));
    objects.extend(homelab_proxy::foundation(spec));
    objects
}

/// Where to look for objects of ours before anything is known of the node: every path and sysctl that a cluster
/// of today or of an earlier apply could use there. The node adds what its own [`NodeSpec`] implies.
pub fn scope(spec: &NodeSpec) -> Scope {
    Scope::of(&foundation(spec), &spec.vtep.device)
}

fn agent_objects(spec: &NodeSpec) -> Vec<NodeObject> {
    let root = || ROOT.to_owned();
    let specs = [
        Spec::Binary(Binary {
            path: ours::binary_path(&spec.binary_sha256),
            sha256: spec.binary_sha256.clone(),
            mode: 0o755,
            owner: root(),
        }),
        Spec::Symlink(Symlink {
            path: ours::BINARY.to_owned(),
            target: format!("{}/homelab-node", spec.binary_sha256),
        }),
        Spec::File(File {
            path: ours::NODE_SPEC.to_owned(),
            mode: 0o644,
            owner: root(),
            content: Content::Text(spec.to_file()),
        }),
        Spec::File(File {
            path: ours::UNIT_FILE.to_owned(),
            mode: 0o644,
            owner: root(),
            content: Content::Text(unit_file(spec)),
        }),
        Spec::Unit(Unit {
            name: ours::UNIT.to_owned(),
            enabled: true,
            state: "active".to_owned(),
            reload_needed: false,
            running: spec.binary_sha256.clone(),
            config: spec.digest(),
        }),
    ];
    specs.into_iter().map(of_agent).collect()
}

/// An owner.
pub(crate) const ROOT: &str = "0:0";

pub(crate) fn of_agent(spec: Spec) -> NodeObject {
    NodeObject { module: Module::Agent, spec }
}

/// A rendered template with one line end at its end. It is part of this binary and every value is set: a test renders it.
pub(crate) fn tidy(text: Result<String, minijinja::Error>) -> String {
    let mut text = text.unwrap_or_default();
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The agent's unit file.
fn unit_file(spec: &NodeSpec) -> String {
    let mut writable = vec![ours::VAR.to_owned(), ours::RUN.to_owned(), "/etc/sysctl.d".to_owned()];
    writable.extend(spec.cni_bin_dirs.iter().cloned());
    writable.extend(spec.cni_conf_dirs.iter().cloned());
    // Without pools speakers only tell each other of containers.
    let pools = spec.speaker.as_ref().is_some_and(|speaker| !speaker.pools.is_empty());
    let announces = spec.speaker.is_some() && (pools || spec.kubernetes.is_some());
    let text = Environment::new().render_str(
        include_str!("../templates/homelab-node.service"),
        context! {
            header => ours::FILE_HEADER,
            spec_path => ours::NODE_SPEC,
            binary => ours::BINARY,
            writable => writable,
            speaker => spec.speaker.is_some(),
            announces => announces,
        },
    );
    tidy(text)
}
