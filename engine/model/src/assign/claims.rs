//! Who holds what.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::service::{Protocol, Service};

/// Addresses and ports that are held, with the full name of who holds them.
#[derive(Default)]
pub(super) struct Claims {
    cluster_ips: BTreeMap<IpAddr, String>,
    /// Node ports and health check ports.
    node_ports: BTreeMap<(u16, Protocol), String>,
    /// External addresses with their ports.
    listeners: BTreeMap<(IpAddr, Protocol, u16), String>,
    /// Addresses of others, whatever the port.
    foreign: BTreeMap<IpAddr, String>,
}

/// Takes a key, unless another holds it.
fn claim<K: Ord>(map: &mut BTreeMap<K, String>, key: K, name: &str) -> Result<(), String> {
    match map.get(&key) {
        Some(other) => Err(other.clone()),
        None => {
            map.insert(key, name.to_owned());
            Ok(())
        }
    }
}

impl Claims {
    /// All that a service fixes, or nothing and the reason why not.
    pub(super) fn fixed(&mut self, name: &str, service: &Service) -> Result<(), String> {
        let who = |other: &str| {
            if other == name { "another port of its own".to_owned() } else { format!("service {other}") }
        };
        for ip in &service.cluster_ips {
            if let Some(other) = self.cluster_ips.get(ip) {
                return Err(format!(
                    "its clusterIP {ip} belongs to {}; choose another, or leave it out",
                    who(other)
                ));
            }
        }
        let numbers = service.ports.iter().filter_map(|p| Some((p.node_port?, p.protocol)));
        let numbers: Vec<_> =
            numbers.chain(service.health_check_node_port.map(|n| (n, Protocol::Tcp))).collect();
        for (index, (number, protocol)) in numbers.iter().enumerate() {
            let inside = numbers[..index].contains(&(*number, *protocol)).then_some(name);
            let held = self.node_ports.get(&(*number, *protocol)).map(String::as_str).or(inside);
            if let Some(other) = held {
                return Err(format!(
                    "its {} node port {number} belongs to {}; choose another, or leave it out",
                    protocol.as_str().to_uppercase(),
                    who(other)
                ));
            }
        }
        let listeners = service
            .external_ips
            .iter()
            .flat_map(|ip| service.ports.iter().map(|port| (*ip, port.protocol, port.port)));
        for listener in listeners.clone() {
            if let Some(other) = self.listeners.get(&listener) {
                let (ip, protocol, port) = listener;
                return Err(format!(
                    "its {} port {port} of {ip} belongs to {}; services share an address only with different ports",
                    protocol.as_str().to_uppercase(),
                    who(other)
                ));
            }
        }
        self.cluster_ips.extend(service.cluster_ips.iter().map(|ip| (*ip, name.to_owned())));
        self.node_ports.extend(numbers.into_iter().map(|key| (key, name.to_owned())));
        self.listeners.extend(listeners.map(|listener| (listener, name.to_owned())));
        Ok(())
    }

    /// Takes addresses for others.
    pub(super) fn taken(&mut self, taken: &BTreeMap<IpAddr, String>) {
        self.foreign.extend(taken.iter().map(|(ip, holder)| (*ip, holder.clone())));
    }

    /// Takes the external addresses of a service, as far as they are free.
    pub(super) fn external(&mut self, name: &str, service: &Service) {
        for ip in &service.external_ips {
            for port in &service.ports {
                let listener = (*ip, port.protocol, port.port);
                self.listeners.entry(listener).or_insert_with(|| name.to_owned());
            }
        }
    }

    /// Which other has this address.
    pub(super) fn other(&self, ip: IpAddr) -> Option<&str> {
        self.foreign.get(&ip).map(String::as_str)
    }

    /// Takes a cluster address; the error is who holds it.
    pub(super) fn cluster_ip(&mut self, ip: IpAddr, name: &str) -> Result<(), String> {
        claim(&mut self.cluster_ips, ip, name)
    }

    /// Takes a node port; the error is who holds it.
    pub(super) fn node_port(&mut self, number: u16, protocol: Protocol, name: &str) -> Result<(), String> {
        claim(&mut self.node_ports, (number, protocol), name)
    }

    /// Takes a health check port; the error is who holds it.
    pub(super) fn health_check(&mut self, number: u16, name: &str) -> Result<(), String> {
        self.node_port(number, Protocol::Tcp, name)
    }

    /// Takes what was found free: cluster addresses and node ports.
    pub(super) fn chosen(&mut self, name: &str, service: &Service) {
        self.cluster_ips.extend(service.cluster_ips.iter().map(|ip| (*ip, name.to_owned())));
        for port in &service.ports {
            if let Some(number) = port.node_port {
                self.node_ports.insert((number, port.protocol), name.to_owned());
            }
        }
        if let Some(number) = service.health_check_node_port {
            self.node_ports.insert((number, Protocol::Tcp), name.to_owned());
        }
    }

    /// Gives back all that a service holds.
    pub(super) fn release(&mut self, service: &Service) {
        for ip in &service.cluster_ips {
            self.cluster_ips.remove(ip);
        }
        for port in &service.ports {
            if let Some(number) = port.node_port {
                self.node_ports.remove(&(number, port.protocol));
            }
        }
        if let Some(number) = service.health_check_node_port {
            self.node_ports.remove(&(number, Protocol::Tcp));
        }
        for ip in &service.external_ips {
            for port in &service.ports {
                self.listeners.remove(&(*ip, port.protocol, port.port));
            }
        }
    }

    /// Whether nobody holds a cluster address.
    pub(super) fn cluster_ip_is_free(&self, ip: IpAddr) -> bool {
        !self.cluster_ips.contains_key(&ip)
    }

    /// Whether nobody holds a number, whatever the protocol.
    pub(super) fn number_is_free(&self, number: u16) -> bool {
        let all = (number, Protocol::Tcp)..=(number, Protocol::Sctp);
        self.node_ports.range(all).next().is_none()
    }

    /// Whether a number is free for one more protocol of the service that holds it.
    pub(super) fn node_port_is_free(&self, number: u16, protocol: Protocol, name: &str) -> bool {
        let all = (number, Protocol::Tcp)..=(number, Protocol::Sctp);
        self.node_ports.range(all).all(|((_, other), holder)| *other != protocol && holder == name)
    }

    /// Who has this as an external address, on this port.
    pub(super) fn listener(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<&str> {
        self.listeners.get(&(ip, protocol, port)).map(String::as_str)
    }

    /// Whether this is an external address of any service.
    pub(super) fn is_external(&self, ip: IpAddr) -> bool {
        let all = (ip, Protocol::Tcp, 0)..=(ip, Protocol::Sctp, u16::MAX);
        self.listeners.range(all).next().is_some()
    }
}
