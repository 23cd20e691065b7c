//! A Kubernetes API in the lab's LAN.
//!
//! It listens at the router, 192.168.50.1:6443, by HTTPS with an authority of its own. With `KUBEBUILDER_ASSETS` (a
//! directory with `etcd` and `kube-apiserver`) it is the real one, else `homelab-test-api`; [`Kube::name`] says which. There
//! is neither a controller manager nor a kubelet: tests write Nodes, Services and EndpointSlices as these would.

mod server;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Cluster;
pub use server::Saved;
use server::{HOST, Server, TOKEN};

/// Port of the API.
pub const API_PORT: u16 = 6443;
/// Longer than anything takes that is on its way.
const LONG: Duration = Duration::from_secs(90);

/// The API, its files, and who writes to it as an administrator.
pub struct Kube {
    server: Server,
    /// `https://192.168.50.1:6443`.
    url: String,
    netns: PathBuf,
    /// Changes of the marker, by which agents show how far they are.
    marks: u32,
}

impl Kube {
    /// Starts it, with nothing in it but what it makes itself.
    #[track_caller]
    pub fn start(cluster: &Cluster) -> Kube {
        let address = cluster.lab.address(HOST).expect("an address");
        let mut server = Server::new(&cluster.lab).unwrap_or_else(|error| panic!("API server: {error}"));
        let url = format!("https://{address}:{API_PORT}");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": {
                "server": url, "certificate-authority": server.at("ca.crt"),
            } }],
            "users": [{ "name": "admin", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "admin" } }],
        });
        std::fs::write(server.at("admin.kubeconfig"), kubeconfig.to_string())
            .expect("a kubeconfig is written");
        server.start(&cluster.lab).unwrap_or_else(|error| panic!("API server: {error}"));
        let kube = Kube { server, url, netns: cluster.lab.netns_path(HOST), marks: 0 };
        kube.wait();
        // A scenario that failed may have left that.
        kube.heal(cluster);
        kube
    }

    /// Name and version of what answers.
    pub fn name(&self) -> &str {
        self.server.name()
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.at("admin.kubeconfig")
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again, with all that it knew.
    #[track_caller]
    pub fn go_on(&mut self, cluster: &Cluster) {
        self.server.start(&cluster.lab).unwrap_or_else(|error| panic!("API server: {error}"));
        self.wait();
    }

    /// Has its packets to and from a node dropped, until [`Kube::heal`].
    #[track_caller]
    pub fn part(&self, cluster: &Cluster, node: &str) {
        let address = cluster.lab.address(node).expect("an address");
        let rules = format!(
            "table inet parted {{
            chain input {{ type filter hook input priority 0; ip saddr {address} tcp dport {API_PORT} drop; }}
            chain output {{ type filter hook output priority 0; ip daddr {address} tcp sport {API_PORT} drop; }}
            }}"
        );
        cluster.sh(HOST, &format!("nft '{rules}'"));
    }

    /// Ends [`Kube::part`].
    #[track_caller]
    pub fn heal(&self, cluster: &Cluster) {
        cluster.sh(HOST, "nft delete table inet parted 2>/dev/null || true");
    }

    /// Kills it, and keeps what it knows.
    #[track_caller]
    pub fn save(&mut self) -> Saved {
        self.server.kill();
        self.server.save().unwrap_or_else(|error| panic!("etcd's files: {error}"))
    }

    /// Kills it, and has it know what it knew then: resource versions go back.
    #[track_caller]
    pub fn restore(&mut self, saved: &Saved) {
        self.server.kill();
        self.server.restore(saved).unwrap_or_else(|error| panic!("etcd's files: {error}"));
    }

    fn curl(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).args([
            "--",
            "curl",
            "--noproxy",
            "*",
            "--http1.1",
        ]);
        command.args(["--silent", "--show-error", "--max-time", "30", "--request", method]).arg("--cacert");
        command.arg(self.server.at("ca.crt")).args(["--write-out", "\n%{http_code}"]);
        command.args(["--header", &format!("Authorization: Bearer {TOKEN}")]);
        if body.is_some() {
            command.args(["--header", &format!("Content-Type: {kind}"), "--data-binary", "@-"]);
        }
        command.arg(format!("{}{path}", self.url)).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("curl starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        // It may have ended already.
        let _ = body.map(|body| pipe.write_all(body.to_string().as_bytes()));
        drop(pipe);
        let output = child.wait_with_output().expect("curl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, code) = text.rsplit_once('\n')?;
        output.status.success().then_some(())?;
        Some((code.parse().ok()?, serde_json::from_str(answer).unwrap_or_else(|_| json!(answer))))
    }

    fn wait(&self) {
        until("the API answers", || {
            // The namespace comes some time after the server says that it is ready; ours has it from here.
            match self.curl("GET", "/api/v1/namespaces/default", "", None) {
                Some((404, _)) if !self.server.is_real() => {
                    self.ask("POST", "/api/v1/namespaces", &json!({ "metadata": { "name": "default" } }));
                    false
                }
                answer => answer.is_some_and(|(code, _)| code == 200),
            }
        });
    }

    /// The HTTP status and the answer to an administrator.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = Some(body).filter(|_| method != "GET");
        let answer = self.curl(method, path, "application/json", body);
        answer.unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    /// What an administrator asks must be possible.
    #[track_caller]
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let (code, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&code), "{method} {path}: {code} {answer}");
        answer
    }

    /// An object; None: there is none.
    #[track_caller]
    pub fn get(&self, path: &str) -> Option<Value> {
        let (code, answer) = self.ask("GET", path, &Value::Null);
        assert!(matches!(code, 200 | 404), "{path}: {code} {answer}");
        (code == 200).then_some(answer)
    }

    /// Creates an object at `path/NAME`, or gives the one that is there other fields. What others write meanwhile stays.
    #[track_caller]
    pub fn put(&self, path: &str, object: &Value) -> Value {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let one = format!("{path}/{name}");
        for _ in 0..20 {
            let Some(mut there) = self.get(&one) else { return self.must("POST", path, object) };
            for (key, value) in object.as_object().expect("an object") {
                if key == "metadata" {
                    for part in ["labels", "annotations"] {
                        if !value[part].is_null() {
                            there["metadata"][part] = value[part].clone();
                        }
                    }
                } else {
                    there[key] = value.clone();
                }
            }
            let (code, answer) = self.ask("PUT", &one, &there);
            match code {
                200 => return answer,
                409 => {}
                _ => panic!("PUT {one}: {code} {answer}"),
            }
        }
        panic!("{one}: somebody else writes all the time");
    }

    /// Deletes an object, if there is one.
    #[track_caller]
    pub fn delete(&self, path: &str) {
        let (code, answer) = self.ask("DELETE", path, &json!({}));
        assert!(matches!(code, 200 | 404), "DELETE {path}: {code} {answer}");
    }

    /// Has it know two of MetalLB's kinds, as their CRDs would. The tests' own server does anyway.
    #[track_caller]
    pub fn metallb(&self) {
        if !self.server.is_real() {
            return;
        }
        for (plural, kind) in [("ipaddresspools", "IPAddressPool"), ("l2advertisements", "L2Advertisement")] {
            let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
            let spec = json!({
                "group": "metallb.io", "scope": "Namespaced",
                "names": { "plural": plural, "singular": kind.to_lowercase(), "kind": kind },
                "versions": [{
                    "name": "v1beta1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                }],
            });
            let metadata = json!({ "name": format!("{plural}.metallb.io") });
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            self.put(
                path,
                &json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": metadata, "spec": spec }),
            );
            until("its kind is served", || self.get(&format!("/apis/metallb.io/v1beta1/{plural}")).is_some());
        }
    }

    /// Waits until agents have carried out all that was written so far: a Service and its EndpointSlice are changed, and
    /// the kernels hold that. Watches tell in order.
    #[track_caller]
    pub fn carried_out(&mut self, cluster: &Cluster, nodes: &[&str]) {
        self.marks += 1;
        let [external, endpoint] =
            ["198.51.100", "10.244.255"].map(|net| format!("{net}.{}", 1 + self.marks % 250));
        let spec = json!({
            "type": "ClusterIP", "clusterIP": "10.96.255.1", "clusterIPs": ["10.96.255.1"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalIPs": [external],
            "ports": [{ "port": 9, "protocol": "UDP", "targetPort": 9 }],
        });
        self.put(SERVICES, &json!({ "metadata": { "name": "marker" }, "spec": spec }));
        let slice = json!({
            "metadata": { "name": "marker-1", "labels": { SERVICE_NAME: "marker" } }, "addressType": "IPv4",
            "ports": [{ "name": "", "port": 9, "protocol": "UDP" }],
            "endpoints": [{ "addresses": [endpoint], "conditions": { "ready": true } }],
        });
        self.put(SLICES, &slice);
        let script = format!(
            "list=$(nft list table inet homelab-proxy); case $list in *'{external} '*'{endpoint} '*|*'{endpoint} '*'{external} '*) echo yes;; *) echo no;; esac"
        );
        until(&format!("{nodes:?} carry out what the API says"), || {
            nodes.iter().all(|node| cluster.sh(node, &script) == "yes")
        });
    }
}

/// Where the tests' Services are.
pub const SERVICES: &str = "/api/v1/namespaces/default/services";
/// Where their EndpointSlices are.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// The label by which a slice belongs to a Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Waits for what must come.
#[track_caller]
pub fn until(what: &str, happens: impl Fn() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < LONG, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
