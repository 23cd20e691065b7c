//! `kubernetes:`: which files and servers go together.

use std::collections::HashMap;
use std::net::IpAddr;

use homelab_model::{KubernetesAccess, KubernetesSettings, NodesFrom};

use super::{Parsed, clean, seen_before, take};
use crate::problem::{Fault, Span};
use crate::raw::File;
use crate::spanned::Spanned;
use crate::value::{label_value, qualified, quote, words};

/// The settings; the outer None where something is wrong.
pub(super) fn kubernetes(file: &File, faults: &mut Vec<Fault>) -> Option<Option<KubernetesSettings>> {
    let Some(raw) = &file.kubernetes else { return Some(None) };
    let before = faults.len();
    let mut path = |text: &Option<Spanned<String>>, key: &'static str| {
        text.as_ref().and_then(|text| take(faults, text, |text| filled(text, key)))
    };
    let kubeconfig = path(&raw.kubeconfig, "kubeconfig");
    let context = path(&raw.context, "context");
    let ca = path(&raw.ca, "ca");
    let token = path(&raw.token_file, "tokenFile");
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut servers = Vec::new();
    for text in raw.server.iter().flat_map(|servers| &servers.0) {
        let Some(url) = take(faults, text, server) else { continue };
        match seen_before(&mut seen, &url.value, url.span) {
            Some(first) => faults.push(
                Fault::new("kubernetes", url.span, format!("the API server {} is named twice", url.value))
                    .label("again here")
                    .also(first, "first here")
                    .help("keep one of them"),
            ),
            None => servers.push(url.value),
        }
    }
    let access = match token {
        Some(token) => {
            if raw.server.is_none() {
                faults.push(
                    Fault::new("kubernetes", token.span, "`tokenFile` does not say which API server takes the token")
                        .help("add its URL, e.g. `server: https://192.168.50.11:6443`, or name a `kubeconfig` instead"),
                );
            }
            for (other, key) in [(&kubeconfig, "kubeconfig"), (&context, "context")] {
                if let Some(other) = other {
                    faults.push(
                        Fault::new(
                            "kubernetes",
                            other.span,
                            format!("`{key}` and `tokenFile` exclude each other"),
                        )
                        .also(token.span, "the other credential")
                        .help("keep one way to reach the API"),
                    );
                }
            }
            KubernetesAccess::Token { file: token.value }
        }
        None => KubernetesAccess::Kubeconfig {
            path: kubeconfig.map(|path| path.value),
            context: context.map(|context| context.value),
        },
    };
    let proxy = raw.service_proxy_name.as_ref().and_then(|name| {
        take(faults, name, |text| filled(text, "serviceProxyName").and_then(|_| label_value(text)))
    });
    let class = raw.load_balancer_class.as_ref().and_then(|class| take(faults, class, qualified));
    let nodes = match raw.nodes.as_ref().map(|nodes| nodes.value.as_str()) {
        Some("fromKubernetes") => NodesFrom::FromKubernetes,
        // The schema allows nothing else.
        _ => NodesFrom::FromFile,
    };
    clean(faults, before).then(|| {
        Some(KubernetesSettings {
            access,
            servers,
            ca_file: ca.map(|ca| ca.value),
            nodes,
            service_proxy_name: proxy.map(|name| name.value),
            load_balancer_class: class
                .map_or_else(|| KubernetesSettings::CLASS.to_owned(), |class| class.value),
            metrics_port: raw
                .metrics_port
                .as_ref()
                .map_or(KubernetesSettings::METRICS_PORT, |port| port.value),
        })
    })
}

fn filled(text: &str, key: &str) -> Parsed<String> {
    if text.trim().is_empty() {
        return words("kubernetes", format!("`{key}` is empty"), "leave it out for its default");
    }
    Ok(text.to_owned())
}

/// `https://HOST[:PORT]`: tokens of agents travel there.
fn server(text: &str) -> Parsed<String> {
    let example = "for example `https://192.168.50.11:6443`";
    let bad = |why: &str| words("kubernetes", format!("{} {why}", quote(text)), example);
    let Some(rest) = text.strip_prefix("https://") else {
        return bad(match text.starts_with("http://") {
            true => "would send the nodes' tokens in the clear",
            false => "is not the URL of an API server",
        });
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return bad("has more than a host and a port");
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or("?"))),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let six = authority.starts_with('[');
    let name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
    };
    let good = if six { host.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6()) } else { name(host) };
    if !good {
        return bad("is not the URL of an API server");
    }
    if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
        return bad("has no port from 1 to 65535");
    }
    Ok(format!("https://{authority}"))
}
