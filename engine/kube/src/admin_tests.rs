//! What is said of a kubeconfig that is of no use.

use super::*;

const CA: &str = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";

/// A kubeconfig with one context `home`.
fn kubeconfig(cluster: &str, user: &str) -> tempfile::NamedTempFile {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: home\nclusters:\n- name: c\n  cluster: {{{cluster}}}\n\
         contexts:\n- name: home\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{{user}}}\n"
    );
    file(&text)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn access(path: &Path, context: Option<&str>) -> Access {
    let (path, context) = (Some(path.to_owned()), context.map(str::to_owned));
    Access { credential: Credential::Kubeconfig { path, context }, servers: Vec::new(), ca: None }
}

fn refused(access: &Access) -> String {
    Admin::new(access).err().unwrap().to_string()
}

#[test]
fn files_and_contexts_that_are_not_there_are_named() {
    assert!(
        refused(&access(Path::new("/nonexistent/kubeconfig"), None))
            .contains("cannot read /nonexistent/kubeconfig")
    );
    let good = kubeconfig("server: 'https://192.168.50.11:6443'", "token: s3cret");
    let said = refused(&access(good.path(), Some("work")));
    assert!(said.contains("no context \"work\"; its contexts are home"), "{said}");
    // Its parser must not quote what it chokes on.
    let said = refused(&access(file("users: [{name: u, user: {token: s3cret}}").path(), None));
    assert!(said.contains("is no kubeconfig") && !said.contains("s3cret"), "{said}");
}

#[test]
fn agents_are_told_only_what_they_can_use() {
    let said = |cluster: &str| refused(&access(kubeconfig(cluster, "token: s3cret").path(), None));
    assert!(said("server: 'https://127.0.0.1:6443'").contains("each node itself"));
    assert!(said("server: 'http://192.168.50.11:6443'").contains("in the clear"));
    let unchecked = "server: 'https://192.168.50.11', insecure-skip-tls-verify: true";
    assert!(said(unchecked).contains("unchecked"));
    let missing = "server: 'https://192.168.50.11', certificate-authority: /nonexistent/ca.crt";
    assert!(said(missing).contains("/nonexistent/ca.crt"), "{}", said(missing));
}

#[test]
fn a_credential_program_that_fails_is_named_and_not_quoted() {
    let program = file("#!/bin/sh\necho s3cret\necho s3cret >&2\nexit 3\n");
    let path = program.into_temp_path();
    let mut mode = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let exec = |command: &str| {
        format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: '{command}', interactiveMode: Never}}"
        )
    };
    for (command, expected) in [
        (path.display().to_string(), "exit status: 3"),
        ("/nonexistent/program".to_owned(), "cannot be started"),
    ] {
        let config = kubeconfig("server: 'https://127.0.0.1:1'", &exec(&command));
        let mut access = access(config.path(), None);
        access.servers = vec!["https://192.168.50.11:6443".into()];
        let said = match Admin::new(&access) {
            Err(error) => error,
            Ok(admin) => admin.observe().unwrap_err(),
        };
        let text = said.to_string();
        assert!(matches!(&said, ApiError::Plugin { program, .. } if *program == command), "{said:?}");
        assert!(text.contains(expected) && !format!("{said:?}").contains("s3cret"), "{said:?}");
    }
}

#[test]
fn nobody_answers() {
    let ca = file(CA);
    let config = kubeconfig("server: 'https://127.0.0.1:1', insecure-skip-tls-verify: true", "token: s3cret");
    let mut access = access(config.path(), None);
    access.servers = vec!["https://192.168.50.11:6443".into()];
    access.ca = Some(ca.path().to_owned());
    // The certificate is none that TLS knows, which is told before anything else.
    let said = match Admin::new(&access) {
        Err(error) => error,
        Ok(admin) => admin.observe().unwrap_err(),
    };
    assert!(!format!("{said:?}").contains("s3cret"), "{said:?}");
    access.ca = None;
    let config = kubeconfig("server: 'https://127.0.0.1:1'", "token: s3cret");
    access.credential = Credential::Kubeconfig { path: Some(config.path().to_owned()), context: None };
    let said = Admin::new(&access).unwrap().observe().unwrap_err();
    assert!(
        matches!(&said, ApiError::Unreachable { server, .. } if server == "https://127.0.0.1:1"),
        "{said:?}"
    );
}
