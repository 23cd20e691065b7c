//! The plugin's tables on a node without an agent.

use std::io::Write;
use std::process::{Command, Stdio};

use homelab_linux::nft::{Tables, script};
use homelab_model::{Change, NodeObject, NodeSpec, Spec};

/// Loads the plugin's tables as the agent does.
pub(crate) fn load(spec: &NodeSpec) {
    let is_nft = |object: &NodeObject| matches!(object.spec, Spec::NftTable(_) | Spec::NftChain(_));
    let changes: Vec<Change<NodeObject>> =
        homelab_cni::objects(spec).into_iter().filter(is_nft).map(|after| Change::Create { after }).collect();
    let script = script(&changes.iter().collect::<Vec<_>>(), &Tables::new()).expect("script");
    assert!(script.by_netlink.is_empty(), "{:?}", script.by_netlink);
    // The redirects' table is the tunnel's, too.
    let text = format!("add table inet homelab\n{}", script.text);
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
    assert!(nft.wait().expect("nft").success(), "{text}");
}
