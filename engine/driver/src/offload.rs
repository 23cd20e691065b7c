//! Whether the tunnel link may leave checksums to the network card.

/// First good patch release of kernel lines that needed the fix of wrong UDP checksums of NATed VXLAN packets:
/// commit ea64d8d6c675 ("netfilter: nat: never update the UDP checksum when it's 0"), first in 5.7. See
/// flannel#1279. Lines that are not listed and older than 5.7 never got it, or with a vendor's patches that the
/// version number does not show (RHEL 8's 4.18: k3s#5013).
const FIXED: [(u32, u32, u32); 4] = [(5, 6, 13), (5, 4, 41), (4, 19, 123), (4, 14, 181)];

/// Drivers whose cards send wrong inner checksums whatever the kernel (vmxnet3: calico#4727, kURL#5041,
/// talos#10238).
const BAD_DRIVERS: [&str; 1] = ["vmxnet3"];

/// Why offload is switched off on a node, or None where it is safe. Off is always right, only slower.
pub fn offload_fault(kernel: &str, driver: Option<&str>) -> Option<String> {
    if let Some(driver) = driver.filter(|d| BAD_DRIVERS.contains(d)) {
        return Some(format!("network cards with the driver {driver} send wrong checksums through VXLAN"));
    }
    let Some((major, minor, patch)) = version(kernel) else {
        return Some(format!("kernel {kernel:?} is unknown"));
    };
    let fixed =
        (major, minor) >= (5, 7) || FIXED.iter().any(|&(a, b, c)| (major, minor) == (a, b) && patch >= c);
    (!fixed).then(|| format!("kernel {kernel} sends wrong checksums for NATed packets through VXLAN"))
}

/// `6.1.0-18-amd64` -> (6, 1, 0).
fn version(kernel: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let major = numbers.next()?.ok()?;
    let minor = numbers.next()?.ok()?;
    Some((major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_kernel() {
        for good in ["6.1.0-18-amd64", "5.7.0", "5.15.0-134-generic", "5.6.13", "5.4.41", "4.19.123", "5.10"]
        {
            assert_eq!(offload_fault(good, None), None, "{good}");
        }
        for bad in ["5.6.12", "5.5.19", "5.4.40-x", "4.19.122", "4.18.0-372.el8.x86_64", "4.9.999", "odd", ""]
        {
            assert!(offload_fault(bad, None).is_some(), "{bad}");
        }
    }

    #[test]
    fn by_driver() {
        assert!(offload_fault("6.8.0", Some("vmxnet3")).is_some());
        assert_eq!(offload_fault("6.8.0", Some("e1000e")), None);
    }
}
