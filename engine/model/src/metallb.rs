//! MetalLB's annotations of services, wherever services come from.

/// Prefixes of MetalLB's annotations, the newer first.
pub const PREFIXES: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];
/// Addresses that are asked for, separated by commas.
pub const ADDRESSES: &str = "loadBalancerIPs";
/// Pool that is asked for.
pub const POOL: &str = "address-pool";
/// Key of those who may share an address.
pub const SHARING: &str = "allow-shared-ip";
/// What MetalLB itself writes: the pool that the addresses are of.
pub const WRITTEN: &str = "ip-allocated-from-pool";

/// An annotation of MetalLB, by its name without prefix: where both prefixes stand, the newer counts.
pub fn annotation<T>(name: &str, mut get: impl FnMut(&str) -> Option<T>) -> Option<T> {
    PREFIXES.iter().find_map(|prefix| get(&format!("{prefix}{name}")))
}
