//! Where files are. In production that is `/`.

use std::path::{Path, PathBuf};

/// The directory that stands for `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    files: PathBuf,
    proc: PathBuf,
}

impl Default for Root {
    fn default() -> Root {
        Root::system()
    }
}

impl Root {
    /// The real root.
    pub fn system() -> Root {
        Root { files: "/".into(), proc: "/proc".into() }
    }

    /// Files under `directory`; the real `/proc`.
    pub fn at(directory: impl Into<PathBuf>) -> Root {
        Root { files: directory.into(), proc: "/proc".into() }
    }

    /// The same with another directory instead of `/proc`.
    pub fn with_proc(self, proc: impl Into<PathBuf>) -> Root {
        Root { proc: proc.into(), ..self }
    }

    /// Whether this is the running system, with its systemd.
    pub(crate) fn is_system(&self) -> bool {
        self.files == Path::new("/")
    }

    /// Where the absolute path `path` is.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.files.join(path.trim_start_matches('/'))
    }

    /// Writes a file that a test needs, and the directories above it.
    #[cfg(test)]
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Where `/proc/<path>` is.
    pub(crate) fn proc(&self, path: &str) -> PathBuf {
        self.proc.join(path)
    }

    /// Where the sysctl `key` is (sysctl.d(5): dots and slashes stand for each other).
    pub(crate) fn sysctl(&self, key: &str) -> PathBuf {
        let swapped: String = key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect();
        self.proc.join("sys").join(swapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_keys_are_paths() {
        let root = Root::system();
        let path = |key: &str| root.sysctl(key).display().to_string();
        assert_eq!(path("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.rp_filter"), "/proc/sys/net/ipv4/conf/eth0.1/rp_filter");
    }
}
