//! A `homelab.yaml` that tests alter.

use homelab_lab::Lab;
use serde_json::{Map, Value, json};

/// A `homelab.yaml`, written as JSON: every JSON text is a YAML text.
#[derive(Debug, Clone)]
pub struct ClusterFile(pub Value);

impl ClusterFile {
    /// The smallest useful file for a lab: a name, its nodes, a pool.
    pub fn of(lab: &Lab) -> Self {
        let nodes: Vec<Value> = lab.nodes().iter().map(|node| Self::node(lab, node)).collect();
        ClusterFile(json!({
            "name": "home",
            "nodes": nodes,
            "loadBalancer": { "pools": [{ "name": "default", "addresses": ["192.168.50.200-192.168.50.220"] }] },
            "ssh": { "user": "root" },
        }))
    }

    fn node(lab: &Lab, node: &str) -> Value {
        let address = lab.address(node).expect("a node has an address");
        json!({ "name": node, "address": address.to_string() })
    }

    /// Sets a value by its path, e.g. `network.vxlan.vni`; numbers are indices.
    #[track_caller]
    pub fn set(&mut self, path: &str, value: Value) {
        let mut place = &mut self.0;
        for word in path.split('.') {
            place = match (word.parse::<usize>(), place) {
                (Ok(index), Value::Array(items)) => &mut items[index],
                (_, place) => {
                    if place.is_null() {
                        *place = Value::Object(Map::new());
                    }
                    place.as_object_mut().expect("a map").entry(word).or_insert(Value::Null)
                }
            };
        }
        *place = value;
    }

    /// Two address families for pods, and both addresses for the nodes.
    pub fn dual_stack(&mut self, lab: &Lab) {
        self.set("network.podCIDR", json!(["10.244.0.0/16", "fd00:10:244::/48"]));
        self.set("network.serviceCIDR", json!(["10.96.0.0/12", "fd00:10:96::/112"]));
        for (index, node) in lab.nodes().iter().enumerate() {
            let v4 = lab.address(node).expect("a node has an address");
            let v6 = lab.address6(node).expect("a node has an address");
            self.set(&format!("nodes.{index}.address"), json!([v4.to_string(), v6.to_string()]));
        }
    }

    /// Adds a node of the lab.
    pub fn add(&mut self, lab: &Lab, node: &str) {
        self.nodes().push(Self::node(lab, node));
    }

    /// Takes a node out.
    pub fn remove(&mut self, node: &str) {
        self.nodes().retain(|n| n["name"] != node);
    }

    fn nodes(&mut self) -> &mut Vec<Value> {
        self.0["nodes"].as_array_mut().expect("the file has nodes")
    }

    /// As text.
    pub fn text(&self) -> String {
        format!("{:#}\n", self.0)
    }
}
