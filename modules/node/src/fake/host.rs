//! A process on the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use homelab_model::{
    Change, Content, Facts, History, Holder, Key, LbMember, LbNode, LbReport, LbStanding, NodeObject,
    Observed, PoolRange, Scanned, Scope, ServiceReport, Spec, TracePacket, TraceReport, ours,
};
use homelab_protocol::Secret;
use homelab_proxy::Elements;
use homelab_proxy::element::Element;
use homelab_proxy::report::{self, HeldState};

use super::World;
use crate::host::{ApplyFailure, Guard, Host, Locking, Marker, Record};

pub(crate) struct Process {
    world: World,
    secrets: BTreeMap<String, String>,
    kept: Option<BTreeSet<Key>>,
    boot: bool,
    /// Happens whenever it sleeps.
    pub(crate) on_sleep: Option<Box<dyn FnMut()>>,
}

struct Held(World, fn(&mut super::State));

impl Drop for Held {
    fn drop(&mut self) {
        self.1(&mut self.0.0.borrow_mut());
    }
}

const FULL: &str = "no space left on device";

impl Process {
    pub(super) fn new(world: World) -> Process {
        Process { world, secrets: BTreeMap::new(), kept: None, boot: false, on_sleep: None }
    }

    /// Elements of all services.
    fn held(&self) -> Elements {
        let services = self.world.0.borrow().objects().into_iter().filter_map(|object| match object.spec {
            Spec::Service(service) => Some(service),
            _ => None,
        });
        let read = |line: &String| Element::from_line(line).expect("an element");
        services
            .map(|service| {
                let mut elements: Vec<Element> = service.elements.iter().map(read).collect();
                elements.sort_unstable();
                (service.name, elements)
            })
            .collect()
    }

    fn one(&mut self, change: &Change<NodeObject>) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        state.time += 5;
        let key = change.key();
        if let Some((broken, message)) = &state.broken
            && *broken == key
            && (state.stuck || change.after().is_some())
        {
            return Err(message.clone());
        }
        let unlocked = matches!(key, Key::Unit(_) | Key::Package(_));
        if unlocked == state.volatile.agent_locked {
            state.lock_misused = true;
        }
        match key {
            Key::Unit(_) => state.change_unit(change, self.boot),
            Key::Package(name) => {
                match change.after() {
                    None => drop(state.disk.packages.remove(&name)),
                    // A machine that starts does not wait for it.
                    Some(_) if self.boot => {}
                    Some(_) => drop(state.disk.packages.insert(name)),
                }
                Ok(())
            }
            Key::Binary(_) | Key::Symlink(_) | Key::File(_) => {
                let kept = self.kept.as_ref().is_some_and(|kept| kept.contains(&key));
                assert!(kept, "{key} is changed without being kept");
                state.change_file(change, &self.secrets)
            }
            _ => {
                state.change_kernel(change);
                Ok(())
            }
        }
    }
}

impl Host for Process {
    fn observe(&mut self, _: &Scope) -> Result<Observed, String> {
        let state = self.world.0.borrow();
        Ok(Observed {
            facts: Facts { cordoned: state.disk.cordoned.clone(), ..Facts::default() },
            objects: state.objects(),
            spec: state.spec(),
            history: History::default(),
        })
    }

    fn apply(
        &mut self,
        changes: &[Change<NodeObject>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ApplyFailure> {
        for (index, change) in changes.iter().enumerate() {
            if let Change::Replace { before, .. } = change {
                // It is gone before it is made again.
                let delete = Change::Delete { before: before.clone() };
                self.one(&delete).expect("deleted");
                self.world.reach("effect.middle");
            }
            let done = self.one(change);
            done.map_err(|message| ApplyFailure { object: change.key().to_string(), message })?;
            self.touch_progress();
            progress(index + 1);
        }
        Ok(())
    }

    fn reload_if_needed(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn farewell(&mut self) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        assert!(state.objects().is_empty(), "farewell before the last object is gone");
        state.disk.undo.clear();
        state.disk.previous = Default::default();
        state.disk.confirmed = None;
        state.disk.reverted = None;
        state.disk.journal = None;
        state.disk.reserve = false;
        state.disk.cordoned = None;
        state.volatile.reverted = None;
        Ok(())
    }

    fn binary_sha256(&self) -> Result<String, String> {
        Ok(self.world.0.borrow().digest.clone())
    }

    fn lock_apply(&mut self, wait: Duration) -> Result<Option<Guard>, String> {
        let mut state = self.world.0.borrow_mut();
        if state.volatile.apply_locked {
            state.time += wait.as_millis() as u64;
            return Ok(None);
        }
        state.volatile.apply_locked = true;
        drop(state);
        Ok(Some(Box::new(Held(self.world.clone(), |s| s.volatile.apply_locked = false))))
    }

    fn lock(&mut self) -> Result<Guard, String> {
        let mut state = self.world.0.borrow_mut();
        assert!(!state.volatile.agent_locked, "a process locks itself out");
        state.volatile.agent_locked = true;
        drop(state);
        Ok(Box::new(Held(self.world.clone(), |s| s.volatile.agent_locked = false)))
    }

    fn touch_progress(&mut self) {
        let mut state = self.world.0.borrow_mut();
        state.volatile.progress = Some(state.time);
    }

    fn progress_age(&mut self) -> Option<Duration> {
        let state = self.world.0.borrow();
        state.volatile.progress.map(|then| Duration::from_millis(state.time - then))
    }

    fn kill_apply(&mut self) {
        self.world.0.borrow_mut().volatile.apply_locked = false;
    }

    fn session_lock(&mut self, holder: &Holder, wait: Duration) -> Result<Locking, String> {
        let mut state = self.world.0.borrow_mut();
        if let Some(other) = &state.volatile.session {
            let other = other.clone();
            state.time += wait.as_millis() as u64;
            return Ok(Locking::Busy(other));
        }
        state.volatile.session = Some(holder.clone());
        drop(state);
        let guard = Box::new(Held(self.world.clone(), |s| s.volatile.session = None));
        Ok(Locking::Held { guard, waited: false })
    }

    fn session_holder(&mut self) -> Option<Holder> {
        self.world.0.borrow().volatile.session.clone()
    }

    fn displace(&mut self) -> Result<Option<Holder>, String> {
        Ok(self.world.0.borrow_mut().volatile.session.take())
    }

    fn read_journal(&mut self) -> Result<Option<Vec<u8>>, String> {
        Ok(self.world.0.borrow().disk.journal.clone())
    }

    fn write_journal(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        if state.disk.full {
            return Err(FULL.to_owned());
        }
        state.time += 2;
        state.disk.journal = Some(bytes.to_vec());
        Ok(())
    }

    fn reserve(&mut self) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        if state.disk.full {
            return Err(FULL.to_owned());
        }
        state.disk.reserve = true;
        Ok(())
    }

    fn reserved(&mut self) -> bool {
        self.world.0.borrow().disk.reserve
    }

    fn free_reserve(&mut self) -> Result<(), String> {
        self.world.0.borrow_mut().disk.reserve = false;
        Ok(())
    }

    fn remove_transaction(&mut self) -> Result<(), String> {
        self.world.0.borrow_mut().disk.journal = None;
        self.world.reach("store.middle");
        self.world.0.borrow_mut().disk.reserve = false;
        Ok(())
    }

    fn read_record(&mut self, record: Record) -> Result<Option<Vec<u8>>, String> {
        let state = self.world.0.borrow();
        Ok(match record {
            Record::Confirmed => state.disk.confirmed.clone(),
            Record::Reverted => state.disk.reverted.clone().or(state.volatile.reverted.clone()),
        })
    }

    fn write_record(&mut self, record: Record, lasting: bool, bytes: &[u8]) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        if lasting && state.disk.full {
            return Err(FULL.to_owned());
        }
        let bytes = Some(bytes.to_vec());
        match (record, lasting) {
            (Record::Confirmed, _) => state.disk.confirmed = bytes,
            (Record::Reverted, true) => (state.disk.reverted, state.volatile.reverted) = (bytes, None),
            (Record::Reverted, false) => (state.disk.reverted, state.volatile.reverted) = (None, bytes),
        }
        Ok(())
    }

    fn remove_record(&mut self, record: Record) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        match record {
            Record::Confirmed => state.disk.confirmed = None,
            Record::Reverted => (state.disk.reverted, state.volatile.reverted) = (None, None),
        }
        Ok(())
    }

    fn can_arm(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn arm(&mut self, id: &str, seconds: u64) -> Result<(), String> {
        if self.world.0.borrow().disk.full {
            return Err(FULL.to_owned());
        }
        self.world.0.borrow_mut().disk.recovery = true;
        self.world.0.borrow_mut().disk.boot_unit = true;
        let mut state = self.world.0.borrow_mut();
        state.volatile.timer = Some((id.to_owned(), state.time + seconds * 1000));
        Ok(())
    }

    fn rearm(&mut self, id: &str, seconds: u64) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        state.volatile.timer = Some((id.to_owned(), state.time + seconds * 1000));
        Ok(())
    }

    fn disarm(&mut self, id: Option<&str>) -> Result<(), String> {
        self.world.0.borrow_mut().disk.boot_unit = false;
        self.world.reach("disarm.boot.after");
        {
            let mut state = self.world.0.borrow_mut();
            if id.is_some() && state.volatile.timer.as_ref().map(|(own, _)| own.as_str()) == id {
                state.volatile.timer = None;
            }
        }
        self.world.reach("disarm.timer.after");
        self.world.0.borrow_mut().disk.recovery = false;
        Ok(())
    }

    fn install(&mut self, package: &str) -> Result<(), String> {
        if package == "missing" {
            return Err("package missing: E: Unable to locate package missing".to_owned());
        }
        self.world.0.borrow_mut().disk.packages.insert(package.to_owned());
        Ok(())
    }

    fn secrets(&mut self, texts: &BTreeMap<String, String>) {
        self.secrets = texts.clone();
    }

    fn read_secret(&mut self, path: &str) -> Result<Secret, String> {
        assert_eq!(path, ours::KEYS);
        Ok(Secret { summary: "generation 1".into(), text: "text".into() })
    }

    fn keep_asides(&mut self, changes: &[Change<NodeObject>]) -> Result<(), String> {
        self.adopt_asides(changes);
        for change in changes {
            let key = change.key();
            self.world.reach("asides.middle");
            let mut state = self.world.0.borrow_mut();
            match state.disk.files.get(&key).cloned() {
                Some(now) => state.disk.undo.insert(key, now),
                None => state.disk.undo.remove(&key),
            };
        }
        Ok(())
    }

    fn adopt_asides(&mut self, changes: &[Change<NodeObject>]) {
        self.kept = Some(changes.iter().map(Change::key).collect());
    }

    fn drop_asides(&mut self) -> Result<(), String> {
        let kept = self.kept.take().expect("asides are adopted");
        self.world.0.borrow_mut().disk.undo.retain(|key, _| !kept.contains(key));
        Ok(())
    }

    fn retire_asides(&mut self, id: &str) -> Result<(), String> {
        let kept = self.kept.take().expect("asides are adopted");
        {
            let mut state = self.world.0.borrow_mut();
            if state.disk.previous.0 != id {
                if state.disk.full {
                    return Err(FULL.to_owned());
                }
                state.disk.previous = (id.to_owned(), BTreeMap::new());
            }
        }
        self.world.reach("retire.middle");
        let mut state = self.world.0.borrow_mut();
        for key in kept {
            let Some(object) = state.disk.undo.remove(&key) else { continue };
            let wordless = match &object.spec {
                Spec::File(file) => !matches!(file.content, Content::Text(_)),
                Spec::Symlink(link) => link.target.starts_with('('),
                _ => true,
            };
            if wordless {
                state.disk.previous.1.insert(key, object);
            }
        }
        Ok(())
    }

    fn at_boot(&mut self) {
        self.boot = true;
    }

    fn probe(&mut self, targets: &[IpAddr]) -> Result<Vec<bool>, String> {
        Ok(targets.iter().map(IpAddr::is_ipv4).collect())
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>, String> {
        let spec = self.world.0.borrow().spec();
        let (elements, strays) = (self.held(), BTreeMap::new());
        let state = HeldState { elements: &elements, strays: &strays, connections: &[] };
        Ok(report::services(spec.as_ref(), &state))
    }

    fn scan(&mut self, ranges: &[PoolRange]) -> Result<Vec<Scanned>, String> {
        let first = ranges.first().ok_or("no range")?.first;
        Ok(vec![Scanned { address: first, mac: "02:00:00:00:00:99".into(), interface: "eth0".into() }])
    }

    fn load_balancers(&mut self) -> Result<LbNode, String> {
        let state = self.world.0.borrow();
        let member = |cordoned| LbMember {
            name: "node1".into(),
            standing: LbStanding::Itself,
            since_unix_ms: None,
            ready: true,
            cordoned,
            interfaces: Vec::new(),
        };
        let agent = state.volatile.agent.is_some();
        let report = state.volatile.speaker.filter(|_| agent).map(|cordoned| LbReport {
            node: "node1".into(),
            members: vec![member(cordoned)],
            ..LbReport::default()
        });
        Ok(LbNode {
            time_unix_ms: state.time,
            cordoned: state.disk.cordoned.clone(),
            told: state.volatile.speaker.is_some(),
            agent,
            report,
        })
    }

    fn set_cordoned(&mut self, by: Option<&Holder>) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        if by.is_some() && state.spec().is_none() {
            return Err(crate::serve::untold());
        }
        if by.is_some() && state.disk.full {
            return Err(FULL.to_owned());
        }
        state.disk.cordoned = by.cloned();
        Ok(())
    }

    fn tell_agent(&mut self) -> Result<(), String> {
        let mut state = self.world.0.borrow_mut();
        if state.volatile.agent.is_none() {
            return Err("the agent does not run".to_owned());
        }
        state.volatile.told_again = true;
        Ok(())
    }

    fn trace(&mut self, packet: &TracePacket) -> Result<TraceReport, String> {
        let state = self.world.0.borrow();
        let spec = state.spec().ok_or_else(crate::serve::untold)?;
        let mut traced = report::trace(&spec, &[spec.address], &self.held(), &[], packet);
        traced.warnings = crate::serve::altered_rules(&spec, &state.objects());
        Ok(traced)
    }

    fn now_ms(&mut self) -> u64 {
        let state = self.world.0.borrow();
        state.time - state.booted
    }

    fn boot_id(&mut self) -> String {
        self.world.0.borrow().boots.to_string()
    }

    fn unix_seconds(&mut self) -> u64 {
        self.world.0.borrow().time / 1000
    }

    fn sleep(&mut self, time: Duration) {
        self.world.0.borrow_mut().time += time.as_millis() as u64;
        self.world.agent();
        if let Some(happens) = &mut self.on_sleep {
            happens();
        }
    }

    fn marker(&self) -> Marker {
        let world = self.world.clone();
        Rc::new(move |name| world.reach(name))
    }
}
