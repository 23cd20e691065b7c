//! What serve, revert and their transactions need of the machine. The real one is [`crate::machine::Machine`]; tests
//! have a fake.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use homelab_model::{
    Change, Holder, LbNode, NodeObject, Observed, PoolRange, Scanned, Scope, ServiceReport, TracePacket,
    TraceReport,
};
use homelab_protocol::Secret;

/// Something held until it is dropped or the process ends.
pub(crate) type Guard = Box<dyn Any>;

/// Says that a named place was reached where a fault may strike. It can be called while the machine is at work.
pub(crate) type Marker = Rc<dyn Fn(&str)>;

/// A small file of ours about transactions that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Record {
    /// The last confirmed transaction.
    Confirmed,
    /// The last transaction that was taken back.
    Reverted,
}

/// The answer to a wish for the session lock.
pub(crate) enum Locking {
    /// This process has it until the guard is dropped.
    Held {
        /// Holds it.
        guard: Guard,
        /// Whether somebody else had it first.
        waited: bool,
    },
    /// Somebody else has it.
    Busy(Holder),
}

/// A machine that can be looked at and changed.
pub(crate) trait Host {
    /// A look at everything; changes nothing. Its history is empty.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, String>;
    /// Carries out changes in order. `progress` hears how many are done. On an error nothing after it was tried.
    fn apply(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyFailure>;
    /// Lets systemd read its unit files again if they changed since it last did.
    fn reload_if_needed(&mut self) -> Result<(), String>;
    /// Removes homelab's own records, those of transactions too, once nothing of it remains.
    fn farewell(&mut self) -> Result<(), String>;
    /// SHA-256 of the running binary, lower-case hex.
    fn binary_sha256(&self) -> Result<String, String>;

    /// Takes the lock that keeps other applies out, their undo too, and waits for it at most `wait`. None if somebody
    /// else has it still.
    fn lock_apply(&mut self, wait: Duration) -> Result<Option<Guard>, String>;
    /// Takes the lock that keeps the agent out while changes are made.
    fn lock(&mut self) -> Result<Guard, String>;
    /// The holder of the apply lock is at work.
    fn touch_progress(&mut self);
    /// How long ago the holder of the apply lock was last seen at work.
    fn progress_age(&mut self) -> Option<Duration>;
    /// Ends the process that holds the apply lock.
    fn kill_apply(&mut self);

    /// Takes the lock of a laptop's session, and waits for it at most `wait`.
    fn session_lock(&mut self, holder: &Holder, wait: Duration) -> Result<Locking, String>;
    /// Who holds the session lock, if anybody does.
    fn session_holder(&mut self) -> Option<Holder>;
    /// Takes the session lock away from the process that holds it.
    fn displace(&mut self) -> Result<Option<Holder>, String>;

    /// The journal of the open transaction.
    fn read_journal(&mut self) -> Result<Option<Vec<u8>>, String>;
    /// Writes it whole and synced, or not at all.
    fn write_journal(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// Sets room on the disk aside for an undo.
    fn reserve(&mut self) -> Result<(), String>;
    /// Whether that room is still set aside. An undo begins by giving it up: that needs no room.
    fn reserved(&mut self) -> bool;
    /// Gives that room up.
    fn free_reserve(&mut self) -> Result<(), String>;
    /// Removes the journal and the reserve, if they are there, and directories that were made for them.
    fn remove_transaction(&mut self) -> Result<(), String>;
    /// Reads a record, wherever it is.
    fn read_record(&mut self, record: Record) -> Result<Option<Vec<u8>>, String>;
    /// Writes it whole and synced, or not at all. Unless it is `lasting` it needs no room on a disk, and a reboot takes
    /// it away.
    fn write_record(&mut self, record: Record, lasting: bool, bytes: &[u8]) -> Result<(), String>;
    /// Removes it, if it is there.
    fn remove_record(&mut self, record: Record) -> Result<(), String>;

    /// Why the undo of a transaction could not be armed here, if so.
    fn can_arm(&mut self) -> Result<(), String>;
    /// From now on the transaction is undone after so many seconds and at the next boot, whatever becomes of us.
    fn arm(&mut self, id: &str, seconds: u64) -> Result<(), String>;
    /// The same for what is armed already: a timer more.
    fn rearm(&mut self, id: &str, seconds: u64) -> Result<(), String>;
    /// Takes back whatever [`Host::arm`] left; `None` for the name where only that of a dead boot is known.
    fn disarm(&mut self, id: Option<&str>) -> Result<(), String>;

    /// Installs a package, unless it is there and ours.
    fn install(&mut self, package: &str) -> Result<(), String>;
    /// The texts of secrets among the objects of the next changes.
    fn secrets(&mut self, texts: &BTreeMap<String, String>);
    /// The text of a secret file.
    fn read_secret(&mut self, path: &str) -> Result<Secret, String>;
    /// Keeps what is at the paths of `changes` beside it, synced: an undo brings it back without needing room. Once in
    /// a transaction, after its journal was written.
    fn keep_asides(&mut self, changes: &[Change<NodeObject>]) -> Result<(), String>;
    /// What is kept beside the paths of `changes` belongs to the open transaction: for another process than the one
    /// that kept it.
    fn adopt_asides(&mut self, changes: &[Change<NodeObject>]);
    /// The transaction is taken back: removes what was kept for it.
    fn drop_asides(&mut self) -> Result<(), String>;
    /// The transaction is confirmed: what no plan has words for stays until the next one is, the rest goes.
    fn retire_asides(&mut self, id: &str) -> Result<(), String>;
    /// The machine is starting: systemd's jobs must not be waited for, and processes do not run yet.
    fn at_boot(&mut self);

    /// Which of these addresses answer through the tunnel.
    fn probe(&mut self, targets: &[IpAddr]) -> Result<Vec<bool>, String>;

    /// Which machines of the LAN answer for these addresses.
    fn scan(&mut self, ranges: &[PoolRange]) -> Result<Vec<Scanned>, String>;

    /// What the kernel holds of each service against what this node was told.
    fn services(&mut self) -> Result<Vec<ServiceReport>, String>;
    /// Whether the node is cordoned, and what its agent says of load-balancer addresses.
    fn load_balancers(&mut self) -> Result<LbNode, String>;
    /// Cordons the node in somebody's name, or lifts that. The agent is not told.
    fn set_cordoned(&mut self, by: Option<&Holder>) -> Result<(), String>;
    /// Tells the running agent to read whether the node is cordoned.
    fn tell_agent(&mut self) -> Result<(), String>;
    /// What this node does with a packet; both addresses are of one family.
    fn trace(&mut self, packet: &TracePacket) -> Result<TraceReport, String>;

    /// Milliseconds since the boot, time asleep included (`CLOCK_BOOTTIME`).
    fn now_ms(&mut self) -> u64;
    /// Names this boot.
    fn boot_id(&mut self) -> String;
    /// Seconds since 1970.
    fn unix_seconds(&mut self) -> u64;
    /// Waits.
    fn sleep(&mut self, time: Duration);
    /// Where faults are told to strike, see [`Marker`].
    fn marker(&self) -> Marker;
}

/// A change that failed.
#[derive(Debug, Clone)]
pub(crate) struct ApplyFailure {
    /// The object as plans name it.
    pub(crate) object: String,
    /// What went wrong.
    pub(crate) message: String,
}
