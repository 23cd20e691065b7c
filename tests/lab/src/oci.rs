//! A container image archive made from busybox alone, so that nodes without internet can run containers.
//!
//! The format is `docker save`'s, which `ctr image import` and `podman load` read.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// What the archive's images are called.
pub(crate) const IMAGE: &str = "docker.io/library/lab:1";
/// The sandbox image of Debian's containerd.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.6";

/// Kinds of entry in a tar archive.
#[derive(Clone, Copy)]
enum Kind<'a> {
    File(&'a [u8]),
    Directory,
    Link(&'a str),
}

/// A writer of the ustar format, as far as two small archives need it.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(&mut self, name: &str, mode: u32, kind: Kind<'_>) {
        let (flag, data, target) = match kind {
            Kind::File(data) => (b'0', data, ""),
            Kind::Directory => (b'5', &[][..], ""),
            Kind::Link(target) => (b'2', &[][..], target),
        };
        let mut header = [0u8; 512];
        put(&mut header, 0, name.as_bytes());
        put(&mut header, 100, format!("{mode:07o}").as_bytes());
        for (offset, width, value) in [(108, 7, 0), (116, 7, 0), (124, 11, data.len()), (136, 11, 0)] {
            put(&mut header, offset, format!("{value:0width$o}").as_bytes());
        }
        header[156] = flag;
        put(&mut header, 157, target.as_bytes());
        put(&mut header, 257, b"ustar\x0000");
        // The sum counts its own field as spaces.
        put(&mut header, 148, b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn put(header: &mut [u8; 512], offset: usize, bytes: &[u8]) {
    header[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Archive of two images that share one layer: [`IMAGE`] serves `/www` on port 8080, [`PAUSE`] waits.
pub(crate) fn archive(busybox: &[u8], applets: &[String]) -> Vec<u8> {
    let layer = layer(busybox, applets);
    let digest = sha256(&layer);
    let file = format!("{digest}.tar");
    let mut tar = Tar::default();
    tar.add(&file, 0o644, Kind::File(&layer));
    let mut manifest = Vec::new();
    let pause = r#"trap "exit 0" TERM INT; sleep 2147483 & wait"#;
    for (name, command) in
        [(IMAGE, vec!["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]), (PAUSE, vec!["/bin/sh", "-c", pause])]
    {
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            "history": [{ "created": "2020-01-01T00:00:00Z" }],
        })
        .to_string();
        let config_file = format!("{}.json", sha256(config.as_bytes()));
        tar.add(&config_file, 0o644, Kind::File(config.as_bytes()));
        manifest.push(serde_json::json!({ "Config": config_file, "RepoTags": [name], "Layers": [file] }));
    }
    let manifest = serde_json::Value::from(manifest).to_string();
    tar.add("manifest.json", 0o644, Kind::File(manifest.as_bytes()));
    tar.finish()
}

fn layer(busybox: &[u8], applets: &[String]) -> Vec<u8> {
    let mut tar = Tar::default();
    for dir in ["bin", "etc", "proc", "sys", "dev", "root", "www", "var", "run"] {
        tar.add(&format!("{dir}/"), 0o755, Kind::Directory);
    }
    tar.add("tmp/", 0o1777, Kind::Directory);
    tar.add("bin/busybox", 0o755, Kind::File(busybox));
    tar.add("etc/passwd", 0o644, Kind::File(b"root:x:0:0::/root:/bin/sh\n"));
    tar.add("etc/group", 0o644, Kind::File(b"root:x:0:\n"));
    tar.add("www/index.html", 0o644, Kind::File(b"lab\n"));
    for applet in applets.iter().filter(|name| *name != "busybox") {
        tar.add(&format!("bin/{applet}"), 0o777, Kind::Link("busybox"));
    }
    tar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn tar_reads_what_we_write() {
        let busybox = vec![7u8; 1000];
        let path = std::env::temp_dir().join(format!("lab-oci-{}.tar", std::process::id()));
        std::fs::write(&path, layer(&busybox, &["sh".into(), "busybox".into()])).unwrap();
        let list = Command::new("tar").arg("-tvf").arg(&path).stderr(Stdio::inherit()).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(list.status.success());
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("bin/sh -> busybox"), "{list}");
        assert!(list.contains("1000"), "{list}");
        assert!(list.contains("drwxrwxrwt"), "{list}");
    }
}
