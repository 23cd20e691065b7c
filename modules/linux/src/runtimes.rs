//! Container runtimes, and where they look for CNI plugins and configuration.

use std::fs;
use std::path::{Path, PathBuf};

use homelab_model::{CniRuntime, ours};

use crate::root::Root;

/// Where programs are.
const PROGRAMS: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"];

/// The runtimes of the node.
pub(crate) fn runtimes(root: &Root) -> Vec<CniRuntime> {
    found(root).into_iter().map(|(name, settings)| settings.runtime(name)).collect()
}

/// Where the node's runtimes answer CRI, with their names; whether one runs is not looked at.
pub fn cri_sockets(root: &Root) -> Vec<(&'static str, PathBuf)> {
    let usual = |name| match name {
        "containerd" => Some("/run/containerd/containerd.sock"),
        // It tells its containerd on the command line.
        "k3s" => Some("/run/k3s/containerd/containerd.sock"),
        "cri-o" => Some("/run/crio/crio.sock"),
        _ => None,
    };
    let socket = |(name, settings): (&'static str, Settings)| {
        let path = settings.socket.as_deref().or(usual(name))?;
        Some((name, root.path(path)))
    };
    found(root).into_iter().filter_map(socket).collect()
}

/// The runtimes of the node and what their files say.
fn found(root: &Root) -> Vec<(&'static str, Settings)> {
    let installed = |name: &str| PROGRAMS.iter().any(|d| root.path(&format!("{d}/{name}")).exists());
    let text = |path: &str| fs::read_to_string(root.path(path)).ok();
    let mut found = Vec::new();
    let containerd = text("/etc/containerd/config.toml");
    if containerd.is_some() || installed("containerd") {
        let mut settings = Settings::default();
        if let Some(text) = containerd {
            settings.read_containerd(&text);
            // containerd merges imports over the main file.
            for file in imports(&text).iter().flat_map(|import| glob(root, import)) {
                settings.read_containerd(&fs::read_to_string(file).unwrap_or_default());
            }
        }
        found.push(("containerd", settings));
    }
    if let Some(text) = text("/var/lib/rancher/k3s/agent/etc/containerd/config.toml") {
        let mut settings = Settings::default();
        settings.read_containerd(&text);
        found.push(("k3s", settings));
    }
    if installed("crio") {
        let mut settings = Settings::default();
        let mut files = vec![root.path("/etc/crio/crio.conf")];
        files.extend(glob(root, "/etc/crio/crio.conf.d/*"));
        for file in files {
            settings.read_crio(&fs::read_to_string(file).unwrap_or_default());
        }
        found.push(("cri-o", settings));
    }
    if installed("podman") {
        let mut settings = Settings::default();
        for path in ["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"] {
            settings.read_podman(&text(path).unwrap_or_default());
        }
        for file in glob(root, "/etc/containers/containers.conf.d/*.conf") {
            settings.read_podman(&fs::read_to_string(file).unwrap_or_default());
        }
        found.push(("podman", settings));
    }
    found
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    bin_dirs: Vec<String>,
    conf_dir: Option<String>,
    /// Where the runtime answers CRI.
    socket: Option<String>,
}

impl Settings {
    /// `bin_dir` or (from 2.1 on) `bin_dirs`, and `conf_dir`, in the section `cni` of whichever plugin (its name
    /// differs between the versions 1, 2 and 3 of the format).
    fn read_containerd(&mut self, text: &str) {
        for (section, key, values) in entries(text) {
            let section = section.replace(['"', '\''], "");
            if section.starts_with("plugins.") && section.ends_with(".cni") {
                self.set(&key, values, &["bin_dir", "bin_dirs"], "conf_dir");
            } else if section == "grpc" && key == "address" {
                self.set_socket(values);
            }
        }
    }

    fn read_crio(&mut self, text: &str) {
        for (section, key, values) in entries(text) {
            if section == "crio.network" {
                self.set(&key, values, &["plugin_dir", "plugin_dirs"], "network_dir");
            } else if section == "crio.api" && key == "listen" {
                self.set_socket(values);
            }
        }
    }

    fn read_podman(&mut self, text: &str) {
        for (section, key, values) in entries(text) {
            if section == "network" {
                self.set(&key, values, &["cni_plugin_dirs"], "network_config_dir");
            }
        }
    }

    fn set(&mut self, key: &str, values: Vec<String>, bin: &[&str], conf: &str) {
        let absolute = values.into_iter().map(|v| v.trim_end_matches('/').to_owned());
        let mut absolute: Vec<String> = absolute.filter(|v| v.starts_with('/')).collect();
        if absolute.is_empty() {
            // containerd 2.1 has both of its keys, one of them empty.
        } else if bin.contains(&key) {
            self.bin_dirs = absolute;
        } else if key == conf {
            self.conf_dir = absolute.pop();
        }
    }

    fn set_socket(&mut self, values: Vec<String>) {
        self.socket = values.into_iter().find(|value| value.starts_with('/')).or(self.socket.take());
    }

    /// Of several directories that a runtime searches one is enough: the usual one, or its first. containerd, CRI-O and
    /// podman are built with the usual one; Debian's containerd too, but its configuration says `/usr/lib/cni`.
    fn runtime(self, name: &str) -> CniRuntime {
        let usual = ours::CNI_BIN_DIR.to_owned();
        let bin_dir = if self.bin_dirs.contains(&usual) { None } else { self.bin_dirs.into_iter().next() };
        CniRuntime {
            name: name.to_owned(),
            bin_dirs: vec![bin_dir.unwrap_or(usual)],
            conf_dir: self.conf_dir.unwrap_or_else(|| ours::CNI_CONF_DIR.to_owned()),
        }
    }
}

/// `(section, key, texts of the value)` of a TOML file: as much of the format as these files use.
fn entries(text: &str) -> Vec<(String, String, Vec<String>)> {
    let mut found: Vec<(String, String, Vec<String>)> = Vec::new();
    let mut section = String::new();
    let mut open_list = false;
    for line in text.lines() {
        let line = without_comment(line).trim();
        if open_list {
            if let Some(last) = found.last_mut() {
                last.2.extend(strings(line));
            }
            open_list = !line.contains(']');
        } else if let Some(head) = line.strip_prefix('[') {
            section = head.trim_start_matches('[').trim_end_matches(']').trim().to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.trim();
            found.push((section.clone(), key.trim().to_owned(), strings(value)));
            open_list = value.starts_with('[') && !value.contains(']');
        }
    }
    found
}

/// A line up to its comment.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (c, quote) {
            ('#', None) => return &line[..at],
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            _ => {}
        }
    }
    line
}

/// The quoted texts of a line.
fn strings(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['"', '\'']) {
        let quote = &rest[start..=start];
        let Some((inner, after)) = rest[start + 1..].split_once(quote) else { break };
        found.push(inner.to_owned());
        rest = after;
    }
    found
}

/// containerd's `imports`.
fn imports(text: &str) -> Vec<String> {
    entries(text).into_iter().filter(|e| e.0.is_empty() && e.1 == "imports").flat_map(|e| e.2).collect()
}

/// Files that match a pattern whose last part may hold one `*`.
fn glob(root: &Root, pattern: &str) -> Vec<PathBuf> {
    let path = root.path(pattern);
    let Some(name) = path.file_name().map(|n| n.to_string_lossy().into_owned()) else { return Vec::new() };
    let Some((front, back)) = name.split_once('*') else { return vec![path] };
    let matches = |found: &Path| {
        let found = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.len() >= front.len() + back.len() && found.starts_with(front) && found.ends_with(back)
    };
    let Some(entries) = path.parent().and_then(|p| fs::read_dir(p).ok()) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| matches(p)).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containerd(text: &str) -> Settings {
        let mut settings = Settings::default();
        settings.read_containerd(text);
        settings
    }

    fn settings(bin_dirs: &[&str], conf_dir: Option<&str>) -> Settings {
        Settings {
            bin_dirs: bin_dirs.iter().map(|d| (*d).to_owned()).collect(),
            conf_dir: conf_dir.map(str::to_owned),
            socket: None,
        }
    }

    #[test]
    fn containerds_three_formats() {
        let debian = "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
                      [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\" # Debian's\n      \
                      conf_dir = \"/etc/cni/net.d\"\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    \
                      path = \"/var/lib/containerd\"\n";
        assert_eq!(containerd(debian), settings(&["/usr/lib/cni"], Some("/etc/cni/net.d")));
        let first = "[plugins.cri.cni]\nbin_dir = '/a'\n[plugins.x]\nbin_dir='/b'";
        assert_eq!(containerd(first), settings(&["/a"], None));
        let third = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n bin_dir = ''\n\
                     bin_dirs = [\n  '/a',\n  \"/b/\",\n]\n conf_dir = '/c'\n";
        assert_eq!(containerd(third), settings(&["/a", "/b"], Some("/c")));
    }

    #[test]
    fn a_commented_setting_is_none() {
        assert_eq!(containerd("[plugins.cri.cni]\n# bin_dir = '/a'\n"), Settings::default());
        assert_eq!(containerd("bin_dir = '/a'\n[other.cni]\nbin_dir='/b'"), Settings::default());
    }

    #[test]
    fn crio_and_podman() {
        let mut crio = Settings::default();
        crio.read_crio(
            "[crio.network]\nnetwork_dir = \"/etc/cni/net.d/\"\nplugin_dirs = [\n\t\"/opt/cni/bin/\",\n]\n",
        );
        assert_eq!(crio, settings(&["/opt/cni/bin"], Some("/etc/cni/net.d")));
        let mut podman = Settings::default();
        podman.read_podman("[network]\ncni_plugin_dirs = [\"/a\", \"/b\"]\nnetwork_backend = \"cni\"\n");
        assert_eq!(podman, settings(&["/a", "/b"], None));
    }

    #[test]
    fn installed_runtimes_only() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        assert_eq!(runtimes(&root), []);
        let write = |path: &str, text: &str| root.write(path, text);
        write("/etc/containerd/config.toml", "imports = [\"/etc/containerd/conf.d/*.toml\"]\n");
        write(
            "/etc/containerd/conf.d/cni.toml",
            "[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir='/x'",
        );
        write("/usr/bin/crio", "");
        let found = runtimes(&root);
        assert_eq!(found.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["containerd", "cri-o"]);
        assert_eq!(found[0].bin_dirs, ["/x"]);
        assert_eq!(found[1].bin_dirs, ["/opt/cni/bin"]);
        // Of a list one directory is enough.
        let podman = |dirs: &str| {
            write("/etc/containers/containers.conf", &format!("[network]\ncni_plugin_dirs = [{dirs}]\n"));
            runtimes(&root).into_iter().find(|r| r.name == "podman").unwrap().bin_dirs
        };
        write("/usr/bin/podman", "");
        assert_eq!(podman("\"/a\", \"/opt/cni/bin/\""), ["/opt/cni/bin"]);
        assert_eq!(podman("\"/a\", \"/b\""), ["/a"]);
        assert_eq!(podman(""), ["/opt/cni/bin"]);
    }

    #[test]
    fn sockets_of_cri_are_where_the_runtimes_say() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let write = |path: &str, text: &str| root.write(path, text);
        write("/usr/bin/containerd", "");
        write("/usr/bin/podman", "");
        assert_eq!(cri_sockets(&root), [("containerd", root.path("/run/containerd/containerd.sock"))]);
        write(
            "/etc/containerd/config.toml",
            "version = 2\n[grpc]\n  address = \"/run/c.sock\"\n[ttrpc]\n address='/x'",
        );
        write("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", "version = 2\n");
        write("/usr/bin/crio", "");
        write("/etc/crio/crio.conf", "[crio.api]\n# listen = \"/run/no.sock\"\n");
        let usual = root.path("/run/crio/crio.sock");
        let k3s = root.path("/run/k3s/containerd/containerd.sock");
        let all = |crio| [("containerd", root.path("/run/c.sock")), ("k3s", k3s.clone()), ("cri-o", crio)];
        assert_eq!(cri_sockets(&root), all(usual));
        write("/etc/crio/crio.conf.d/10.conf", "[crio.api]\nlisten = \"/run/own.sock\"\n");
        assert_eq!(cri_sockets(&root), all(root.path("/run/own.sock")));
    }
}
