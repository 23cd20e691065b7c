//! Pod sandboxes by containerd's CRI, as kubelet makes them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use homelab_cri::{Client, Config, Error, Linux, Metadata};
use serde_json::Value;

use crate::{Cluster, Pod};

/// How long a runtime on a busy machine may take for one call.
const LIMIT: Duration = Duration::from_secs(240);

/// A node's containerd.
#[derive(Debug)]
pub struct Cri {
    node: String,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

/// A sandbox of a pod of the namespace `home`: its `attempt`-th, as kubelet counts when it makes one anew.
pub fn sandbox(name: &str, attempt: u32) -> Config {
    let metadata =
        Metadata { name: name.to_owned(), uid: format!("uid-{name}"), namespace: "home".to_owned(), attempt };
    let hostname = name.to_owned();
    Config { metadata: Some(metadata), hostname, linux: Some(Linux {}), ..Config::default() }
}

impl Cri {
    /// Makes sandboxes, all at once.
    pub fn run_all(&self, configs: Vec<Config>) -> Vec<Result<String, Error>> {
        let runs = configs.into_iter().map(|config| {
            let client = self.client.clone();
            async move { client.run(config).await }
        });
        self.all(runs.collect())
    }

    /// Makes a sandbox, which must succeed.
    #[track_caller]
    pub fn run(&self, config: Config) -> String {
        self.runtime.block_on(self.client.run(config)).unwrap_or_else(|e| panic!("on {}: {e}", self.node))
    }

    /// Stops and removes sandboxes, all at once, which must succeed.
    #[track_caller]
    pub fn remove(&self, ids: &[String]) {
        let removals = ids.iter().cloned().map(|id| {
            let client = self.client.clone();
            async move {
                client.stop(&id).await?;
                client.remove(&id).await
            }
        });
        for (result, id) in self.all(removals.collect()).into_iter().zip(ids) {
            result.unwrap_or_else(|e| panic!("{id} on {}: {e}", self.node));
        }
    }

    /// The ids of all sandboxes; None if containerd does not answer.
    pub fn list(&self) -> Option<Vec<String>> {
        let found = self.runtime.block_on(self.client.list()).ok()?;
        Some(found.items.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// Waits until containerd answers.
    #[track_caller]
    pub fn answers(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            if let Some(list) = self.list() {
                return list;
            }
            assert!(start.elapsed() < LIMIT, "containerd on {} does not answer", self.node);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Addresses of a sandbox as the runtime knows them, and the process that holds its namespaces.
    #[track_caller]
    pub fn status(&self, id: &str) -> (Vec<IpAddr>, u64) {
        let found = self.runtime.block_on(self.client.status(id)).expect("the runtime knows the sandbox");
        let network = found.status.and_then(|status| status.network).expect("a network");
        let more = network.additional_ips.iter().map(|more| more.ip.as_str());
        let texts = std::iter::once(network.ip.as_str()).chain(more);
        let addresses = texts.map(|text| text.parse().expect("an address")).collect();
        let info: Value = serde_json::from_str(&found.info["info"]).expect("JSON");
        (addresses, info["pid"].as_u64().expect("a process"))
    }

    /// Runs to their ends, in their order.
    fn all<T: Send + 'static>(&self, work: Vec<impl Future<Output = T> + Send + 'static>) -> Vec<T> {
        self.runtime.block_on(async {
            let tasks: Vec<_> = work.into_iter().map(tokio::spawn).collect();
            let mut results = Vec::new();
            for task in tasks {
                results.push(task.await.expect("the call ends"));
            }
            results
        })
    }
}

impl Cluster {
    /// The CRI of a node's containerd, which starts if it does not run. Of this boot of the node.
    #[track_caller]
    pub fn cri(&self, node: &str) -> Cri {
        self.lab.containerd(node).expect("containerd starts");
        // Its socket in the node's file system, whose network namespace does not matter.
        let leader = self.lab.leader(node).expect("the node runs");
        let client = Client::new(format!("/proc/{leader}/root/run/containerd/containerd.sock"), LIMIT);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let cri = Cri { node: node.to_owned(), client, runtime };
        cri.answers();
        cri
    }

    /// Makes a sandbox with a server in it; gives its id and the pod.
    #[track_caller]
    pub fn sandbox(&mut self, cri: &Cri, config: Config) -> (String, Pod) {
        let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let id = cri.run(config);
        let (addresses, pid) = cri.status(&id);
        let pod = self.adopt(&cri.node, &name, format!("/proc/{pid}/ns/net"));
        assert_eq!(pod.addresses, addresses, "{name}: what the runtime says");
        (id, pod)
    }
}
