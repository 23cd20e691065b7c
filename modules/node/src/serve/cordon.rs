//! A node that is to have no load-balancer addresses.

use std::time::Duration;

use homelab_model::{Holder, LbNode};

use crate::host::Host;

/// How long the agent may take to show what it was told.
const PATIENCE_MS: u64 = 5000;
/// Pause between two looks at what it says.
const PAUSE: Duration = Duration::from_millis(10);

/// Cordons the node, or lifts that; whether it was otherwise before, and the node afterwards: once the agent shows it,
/// or if there is none that could.
pub(super) fn set<H: Host>(host: &mut H, on: bool, by: &Holder) -> Result<(bool, LbNode), String> {
    let before = host.load_balancers()?;
    let changed = before.cordoned.is_some() != on;
    if changed {
        host.set_cordoned(on.then_some(by))?;
    }
    if before.agent && before.told && (changed || before.shows_cordoned() != Some(on)) {
        let half = |why: String| {
            let word = if on { "cordoned" } else { "no longer cordoned" };
            format!("the node is {word} from its agent's next start; now the agent does not know it: {why}")
        };
        host.tell_agent().map_err(half)?;
        let end = host.now_ms() + PATIENCE_MS;
        loop {
            let node = host.load_balancers()?;
            if !node.agent || node.shows_cordoned() == Some(on) {
                return Ok((changed, node));
            }
            if host.now_ms() >= end {
                return Err(half(format!("it does not show it after {} s", PATIENCE_MS / 1000)));
            }
            host.sleep(PAUSE);
        }
    }
    Ok((changed, host.load_balancers()?))
}
