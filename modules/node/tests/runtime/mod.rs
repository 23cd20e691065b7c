//! What `libcni` does with a configuration list, and the plugins of Debian to put into one.
#![allow(dead_code, reason = "every test program uses another part")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::pods::{Answer, Node, PLUGIN, Pod, schemas, start};

/// What Debian's packages install, somewhere: the lab's image, or the packages themselves, unpacked.
fn debian() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    let images = base.unwrap_or_else(home).join("homelab/lab");
    let has_all = |root: &Path| {
        ["usr/lib/cni/tuning", "usr/sbin/xtables-nft-multi"].iter().all(|p| root.join(p).is_file())
    };
    let image = std::fs::read_dir(images).into_iter().flatten().flatten().map(|entry| entry.path());
    // One that is just being built is not whole.
    if let Some(image) = image.filter(|path| !path.ends_with("building")).find(|path| has_all(path)) {
        return image;
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
    let lock = std::fs::File::create(root.with_extension("lock")).expect("lock");
    lock.lock().expect("lock");
    if !has_all(&root) {
        std::fs::create_dir_all(&root).expect("directory");
        let script = "apt-get download containernetworking-plugins iptables libxtables12 libnftnl11 libmnl0 libip4tc2 libip6tc2 \
                      && for package in *.deb; do dpkg -x $package . || exit 1; done";
        let done = Command::new("sh").args(["-c", script]).current_dir(&root).status().expect("sh");
        assert!(done.success() && has_all(&root), "no plugins of Debian's: neither a lab image nor packages");
    }
    root
}

/// A runtime with a cache of results, and the plugins that it finds.
pub(crate) struct Runtime {
    cache: TempDir,
    /// `bin` with iptables, `lib` with what that needs, `cni` with homelab.
    tools: TempDir,
    plugins: PathBuf,
    /// Capability arguments for all attachments.
    pub(crate) capabilities: Value,
    /// `CNI_ARGS`.
    pub(crate) args: String,
}

impl Runtime {
    pub(crate) fn new() -> Runtime {
        let root = debian();
        let tools = tempfile::tempdir().expect("directory");
        for part in ["bin", "lib", "cni"] {
            std::fs::create_dir(tools.path().join(part)).expect("directory");
        }
        symlink(PLUGIN, tools.path().join("cni/homelab")).expect("link");
        for name in [
            "iptables",
            "ip6tables",
            "iptables-save",
            "ip6tables-save",
            "iptables-restore",
            "ip6tables-restore",
        ] {
            let program = root.join("usr/sbin/xtables-nft-multi");
            symlink(program, tools.path().join("bin").join(name)).expect("link");
        }
        // Not all libraries of the image: its C library may be another than this machine's.
        let libraries = root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        for file in std::fs::read_dir(&libraries).expect("libraries").flatten() {
            let name = file.file_name().into_string().expect("name");
            if ["libxtables", "libnftnl", "libmnl", "libip4tc", "libip6tc"]
                .iter()
                .any(|lib| name.starts_with(lib))
            {
                symlink(file.path(), tools.path().join("lib").join(&name)).expect("link");
            }
        }
        symlink(libraries.join("xtables"), tools.path().join("xtables")).expect("link");
        Runtime {
            cache: tempfile::tempdir().expect("directory"),
            tools,
            plugins: root.join("usr/lib/cni"),
            capabilities: json!({}),
            args: "IgnoreUnknown=1".to_owned(),
        }
    }

    fn find(&self, kind: &str) -> PathBuf {
        let places = [self.tools.path().join("cni"), self.plugins.clone()];
        places.iter().map(|dir| dir.join(kind)).find(|path| path.exists()).expect("the plugin's file")
    }

    /// Runs one plugin.
    fn exec(&self, node: &Node, command: &str, place: Option<(&Pod, &str)>, conf: &Value) -> Answer {
        let kind = conf["type"].as_str().expect("type");
        let tools = self.tools.path();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut process = Command::new(self.find(kind));
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", place.map_or("", |(pod, _)| pod.id.as_str()))
            .env("CNI_NETNS", place.map_or(PathBuf::new(), |(pod, _)| pod.path()))
            .env("CNI_IFNAME", place.map_or("", |(_, ifname)| ifname))
            .env("CNI_ARGS", if place.is_some() { self.args.as_str() } else { "" })
            .env("CNI_PATH", format!("{}:{}", tools.join("cni").display(), self.plugins.display()))
            .env("PATH", format!("{}:{path}", tools.join("bin").display()))
            .env("LD_LIBRARY_PATH", tools.join("lib"))
            .env("XTABLES_LIBDIR", tools.join("xtables"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        node.finish(start(process, conf))
    }

    /// `buildOneConfig`: name, version and previous result, and the capabilities that the plugin declares.
    fn configuration(&self, list: &Value, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut conf = plugin.clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        let declared = plugin["capabilities"].as_object().cloned().unwrap_or_default();
        let declared = declared.iter().filter(|(_, on)| **on == true).map(|(name, _)| name);
        let given: Map<String, Value> =
            declared.filter_map(|name| Some((name.clone(), self.capabilities.get(name)?.clone()))).collect();
        if !given.is_empty() {
            conf["runtimeConfig"] = given.into();
        }
        conf
    }

    fn cached(&self, list: &Value, pod: &Pod, ifname: &str) -> PathBuf {
        self.cache.path().join(format!("{}-{}-{ifname}", list["name"].as_str().expect("name"), pod.id))
    }

    fn previous(&self, list: &Value, pod: &Pod, ifname: &str) -> Option<Value> {
        let text = std::fs::read(self.cached(list, pod, ifname)).ok()?;
        serde_json::from_slice::<Value>(&text).ok().map(|cached| cached["result"].clone())
    }

    /// `AddNetworkList`: every plugin gets the result of the one before; the last result is kept.
    pub(crate) fn add(&self, node: &Node, list: &Value, pod: &Pod, ifname: &str) -> Result<Value, Answer> {
        let mut previous: Option<Value> = None;
        for plugin in list["plugins"].as_array().expect("plugins") {
            let conf = self.configuration(list, plugin, previous.as_ref());
            let answer = self.exec(node, "ADD", Some((pod, ifname)), &conf);
            if answer.status != Some(0) {
                return Err(answer);
            }
            let result: Value = serde_json::from_str(&answer.text).expect("JSON");
            if plugin["type"] == "homelab" {
                schemas::assert_result(list["cniVersion"].as_str().expect("version"), &result);
            }
            previous = Some(result);
        }
        let result = previous.expect("a plugin");
        let (name, id) = (&list["name"], &pod.id);
        let kept = json!({ "kind": "cniCacheV1", "containerId": id, "ifName": ifname, "networkName": name, "result": result });
        std::fs::write(self.cached(list, pod, ifname), kept.to_string()).expect("cache");
        Ok(result)
    }

    /// `CheckNetworkList`: every plugin gets the last result.
    pub(crate) fn check(&self, node: &Node, list: &Value, pod: &Pod, ifname: &str) -> Result<(), Answer> {
        let previous = self.previous(list, pod, ifname);
        for plugin in list["plugins"].as_array().expect("plugins") {
            let conf = self.configuration(list, plugin, previous.as_ref());
            let answer = self.exec(node, "CHECK", Some((pod, ifname)), &conf);
            if answer.status != Some(0) {
                return Err(answer);
            }
            assert_eq!(answer.text, "", "CHECK says nothing");
        }
        Ok(())
    }

    /// `DelNetworkList`: in reverse order, every plugin gets the last result, if it is known and DEL of that version takes one.
    pub(crate) fn del(&self, node: &Node, list: &Value, pod: &Pod, ifname: &str) {
        let takes = list["cniVersion"].as_str().expect("version") >= "0.4.0";
        let previous = self.previous(list, pod, ifname).filter(|_| takes);
        for plugin in list["plugins"].as_array().expect("plugins").iter().rev() {
            let conf = self.configuration(list, plugin, previous.as_ref());
            let answer = self.exec(node, "DEL", Some((pod, ifname)), &conf);
            assert_eq!((answer.status, answer.text.as_str()), (Some(0), ""), "{}", plugin["type"]);
        }
        let _ = std::fs::remove_file(self.cached(list, pod, ifname));
    }

    /// Loses what it knew of an attachment.
    pub(crate) fn forget(&self, list: &Value, pod: &Pod, ifname: &str) {
        std::fs::remove_file(self.cached(list, pod, ifname)).expect("cache");
    }

    /// `GCNetworkList` without its DELs: all plugins, going on after an error. The list has an old name, too.
    pub(crate) fn gc(&self, node: &Node, list: &Value, valid: &Value) -> Vec<Answer> {
        let answers = list["plugins"].as_array().expect("plugins").iter().map(|plugin| {
            let mut conf = self.configuration(list, plugin, None);
            conf["cni.dev/valid-attachments"] = valid.clone();
            conf["cni.dev/attachments"] = valid.clone();
            self.exec(node, "GC", None, &conf)
        });
        answers.filter(|answer| answer.status != Some(0)).collect()
    }

    /// `GetStatusNetworkList`.
    pub(crate) fn status(&self, node: &Node, list: &Value) -> Result<(), Answer> {
        for plugin in list["plugins"].as_array().expect("plugins") {
            let answer = self.exec(node, "STATUS", None, &self.configuration(list, plugin, None));
            if answer.status != Some(0) {
                return Err(answer);
            }
        }
        Ok(())
    }

    /// `GetVersionInfo`.
    pub(crate) fn versions(&self, node: &Node, kind: &str) -> Vec<String> {
        let answer = self.exec(node, "VERSION", None, &json!({ "cniVersion": "1.1.0", "type": kind })).ok();
        serde_json::from_value(answer["supportedVersions"].clone()).expect("versions")
    }
}
