//! What the laptop hears of a node's transactions.

use homelab_model::{History, OpenTransaction};

use super::finish;
use super::journal::{ConfirmedRecord, Journal, read_reverted};
use crate::host::Host;

/// All of it but the lock's holder.
pub(crate) fn history<H: Host>(host: &mut H) -> History {
    let open = Journal::read(host).ok().flatten();
    // One that is on record as confirmed only has leftovers.
    let open = open.filter(|journal| !finish::is_confirmed(host, &journal.id)).map(|journal| {
        let remaining = journal.remaining(host).div_ceil(1000);
        let changes = journal.changes.len();
        OpenTransaction { id: journal.id, by: journal.by, phase: journal.phase, remaining, changes }
    });
    let confirmed = ConfirmedRecord::read(host).ok().flatten();
    History {
        holder: None,
        open,
        reverted: read_reverted(host),
        confirmed: confirmed.map(|record| record.previous.confirmed),
    }
}
