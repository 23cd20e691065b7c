//! Rates of a pod: the capability `bandwidth` (CNI's CONVENTIONS.md), Kubernetes' annotations
//! `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`.

use serde_json::{Map, Value};

use crate::config::in_any_case;
use crate::{CniError, Code};

/// How fast one direction may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second, at least 1.
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a pause.
    pub burst: u32,
}

/// Rates of a pod. None: as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<Rate>,
    /// From the pod.
    pub egress: Option<Rate>,
}

/// The least burst, bytes: a whole segment of the largest size that links hand on at once (GSO).
const LEAST_BURST: u64 = 64 << 10;
/// What runtimes say for "none was asked", bits: containerd and CRI-O pass Go's `math.MaxUint32`. Carried out to the
/// letter it would let half a gigabyte pass before the rate counts.
const NO_BURST: u64 = u32::MAX as u64;
/// The burst where none was asked: what passes in a 50th of a second.
const BURSTS_PER_SECOND: u64 = 50;
/// Longest the queue of packets that wait for their turn: a 20th of a second.
const QUEUES_PER_SECOND: u64 = 20;

impl Rate {
    /// A rate in bits per second and a burst in bits; 0 of the latter is none asked. None: no limit.
    fn of_bits(rate: u64, burst: u64) -> Option<Rate> {
        let bytes_per_second = rate.div_ceil(8);
        if bytes_per_second == 0 {
            return None;
        }
        let burst = match burst / 8 {
            _ if burst == 0 || burst >= NO_BURST => bytes_per_second / BURSTS_PER_SECOND,
            asked => asked,
        };
        let burst = u32::try_from(burst.max(LEAST_BURST)).unwrap_or(u32::MAX);
        Some(Rate { bytes_per_second, burst })
    }

    /// How many bytes may wait for their turn.
    pub fn queue(&self) -> u32 {
        let waiting = (self.bytes_per_second / QUEUES_PER_SECOND).max(LEAST_BURST);
        u32::try_from(waiting.saturating_add(self.burst.into())).unwrap_or(u32::MAX)
    }
}

/// Reads `runtimeConfig.bandwidth`.
pub(crate) fn bandwidth(map: &Map<String, Value>) -> Result<Bandwidth, CniError> {
    const FIELD: &str = "runtimeConfig.bandwidth";
    let object = match map.get("runtimeConfig").and_then(|config| config.get("bandwidth")) {
        None | Some(Value::Null) => return Ok(Bandwidth::default()),
        Some(Value::Object(object)) => object,
        Some(other) => {
            return Err(CniError::with(Code::Config, format!("field {FIELD} is no object"), other));
        }
    };
    let number = |field: &str| match in_any_case(object, field) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| {
            CniError::with(Code::Config, format!("field {FIELD}.{field} is no whole number of bits"), value)
        }),
    };
    Ok(Bandwidth {
        ingress: Rate::of_bits(number("ingressRate")?, number("ingressBurst")?),
        egress: Rate::of_bits(number("egressRate")?, number("egressBurst")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Bandwidth, CniError> {
        let mut map = Map::new();
        map.insert("runtimeConfig".to_owned(), serde_json::json!({ "bandwidth": value }));
        bandwidth(&map)
    }

    #[test]
    fn names_of_fields_in_gos_case() {
        let go = serde_json::json!({ "IngressRate": 8_000_000, "IngressBurst": 8_000_000, "EgressRate": 16_000_000 });
        let own = serde_json::json!({ "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 16_000_000 });
        let (go, own) = (read(go).unwrap(), read(own).unwrap());
        assert_eq!(go, own);
        assert_eq!(go.egress.map(|rate| rate.bytes_per_second), Some(2_000_000));
    }

    #[test]
    fn bits_become_bytes() {
        let both = read(serde_json::json!({
            "ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 1, "egressBurst": 1,
        }))
        .expect("bandwidth");
        assert_eq!(both.ingress, Some(Rate { bytes_per_second: 10_000_000, burst: 1_000_000 }));
        assert_eq!(both.egress, Some(Rate { bytes_per_second: 1, burst: 64 << 10 }));
        assert_eq!(read(serde_json::json!({ "ingressRate": 0 })).expect("bandwidth"), Bandwidth::default());
        assert_eq!(read(Value::Null).expect("bandwidth"), Bandwidth::default());
    }

    #[test]
    fn a_burst_that_nobody_asked_for_is_small() {
        for burst in [0, u64::from(u32::MAX), u64::MAX] {
            let read = read(serde_json::json!({ "egressRate": 800_000_000, "egressBurst": burst }));
            assert_eq!(read.expect("bandwidth").egress.map(|rate| rate.burst), Some(2_000_000), "{burst}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [
            serde_json::json!([]),
            serde_json::json!({ "ingressRate": -1 }),
            serde_json::json!({ "egressBurst": "10M" }),
            serde_json::json!({ "egressRate": 1.5 }),
        ] {
            assert_eq!(read(bad.clone()).map_err(|error| error.code), Err(Code::Config), "{bad}");
        }
        let most = read(serde_json::json!({ "egressRate": u64::MAX, "egressBurst": 1 })).expect("bandwidth");
        assert_eq!(most.egress.map(|rate| rate.queue()), Some(u32::MAX));
    }
}
