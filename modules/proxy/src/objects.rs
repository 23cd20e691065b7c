//! Everything of the proxy that a node holds.

use std::collections::BTreeMap;

use homelab_model::{
    Hook, Key, KnownContainers, Module, NftChain, NftTable, NodeObject, NodeSpec, ServiceElements, Spec, ours,
};

use crate::compile::{Elements, NodeView, compile};
use crate::element::Element;
use crate::rules::{self, chains};
use crate::text::sets;

/// What the proxy knows of the node that `spec` describes.
pub fn view(spec: &NodeSpec) -> NodeView {
    NodeView {
        name: spec.node.clone(),
        zone: spec.proxy.zone.clone(),
        addresses: spec.proxy.node_port_addresses.clone(),
        node_port_addresses: Vec::new(),
        pod_cidrs: spec.cluster_cidrs.clone(),
        service_cidrs: spec.service_cidrs.clone(),
        masquerade_all: spec.proxy.masquerade_all,
    }
}

/// The objects that are the same whatever services there are.
pub fn foundation(spec: &NodeSpec) -> Vec<NodeObject> {
    ruleset(&view(spec)).into_iter().map(object).collect()
}

/// An object for each service of `spec`.
pub fn services(spec: &NodeSpec) -> Vec<NodeObject> {
    service_objects(&compile(&spec.services, &view(spec)).0).map(object).collect()
}

/// What a node holds, with what the laptop told it of services in place of where the agent has followed their containers.
pub fn as_told(objects: &mut [NodeObject], spec: &NodeSpec, known: &KnownContainers) {
    if spec.containers.is_empty() {
        return;
    }
    let by_key = |spec: &NodeSpec| -> BTreeMap<Key, NodeObject> {
        services(spec).into_iter().map(|object| (object.spec.key(), object)).collect()
    };
    let followed = known.follow(&spec.services, &spec.containers);
    let followed = by_key(&NodeSpec { services: followed, ..spec.clone() });
    let told = by_key(spec);
    for object in objects.iter_mut().filter(|object| matches!(object.spec, Spec::Service(_))) {
        let key = object.spec.key();
        if let (Some(one), Some(told)) = (followed.get(&key), told.get(&key))
            && one.spec == object.spec
        {
            object.clone_from(told);
        }
    }
}

fn object(spec: Spec) -> NodeObject {
    NodeObject { module: Module::Proxy, spec }
}

/// The ruleset, which depends on no service.
pub fn ruleset(view: &NodeView) -> Vec<Spec> {
    let mut sets: Vec<_> = sets(view);
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    let table = NftTable {
        name: ours::PROXY_TABLE.to_owned(),
        sets: sets.into_iter().map(|set| set.to_line()).collect(),
    };
    let chain = |chain: rules::Chain| NftChain {
        table: ours::PROXY_TABLE.to_owned(),
        name: chain.name,
        hook: chain.hook.map(|(r#type, hook, priority)| Hook {
            r#type: r#type.to_owned(),
            hook: hook.as_str().to_owned(),
            priority,
            policy: "accept".to_owned(),
        }),
        rules: chain.rules.iter().map(rules::Rule::to_nft).collect(),
    };
    let chains = chains(view).into_iter().map(chain).map(Spec::NftChain);
    [Spec::NftTable(table)].into_iter().chain(chains).collect()
}

/// An object per service.
pub fn service_objects(elements: &Elements) -> impl Iterator<Item = Spec> + '_ {
    elements.iter().map(|(name, elements)| {
        let mut lines: Vec<String> = elements.iter().map(Element::to_line).collect();
        lines.sort_unstable();
        Spec::Service(ServiceElements { name: name.clone(), elements: lines })
    })
}
