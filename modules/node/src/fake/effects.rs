//! What changes do to the machine.

use std::collections::BTreeMap;

use homelab_model::{
    Change, Content, Key, Module, NodeObject, Object, Package, Spec, Sysctl, Unit, diff, ours,
};

use super::State;

impl State {
    /// Starts the agent as systemd would: from the link in place, with the configuration in place.
    pub(crate) fn start_agent(&mut self) {
        self.volatile.agent = None;
        let file = |path: &str| Key::File(path.to_owned());
        if !self.disk.files.contains_key(&file(ours::UNIT_FILE)) {
            return;
        }
        let Some(config) = self.config() else { return };
        let link = self.disk.files.get(&Key::Symlink(ours::BINARY.to_owned()));
        let Some(Spec::Symlink(link)) = link.map(|o| &o.spec) else { return };
        let Some((digest, _)) = link.target.split_once('/') else { return };
        if self.disk.files.contains_key(&Key::Binary(ours::binary_path(digest))) {
            self.volatile.agent = Some((digest.to_owned(), config));
        }
    }

    /// Kernel parameters at boot, as far as there is a file of ours.
    pub(crate) fn load_sysctls(&mut self) {
        if self.disk.files.contains_key(&Key::File(ours::SYSCTL_FILE.to_owned())) {
            for object in self.desired() {
                if matches!(&object.spec, Spec::Sysctl(sysctl) if sysctl.link.is_none()) {
                    self.volatile.kernel.insert(object.key(), object);
                }
            }
        }
    }

    /// Everything of ours that is there.
    pub(crate) fn objects(&self) -> Vec<NodeObject> {
        let mut objects: BTreeMap<Key, NodeObject> = self.disk.files.clone();
        objects.extend(self.volatile.kernel.iter().map(|(k, o)| (k.clone(), o.clone())));
        objects.retain(|key, _| !matches!(key, Key::Sysctl(k) if !self.disk.originals.contains(k)));
        for key in &self.disk.originals {
            let spec = Spec::Sysctl(Sysctl { key: key.clone(), link: None, value: "0".into() });
            objects.entry(Key::Sysctl(key.clone())).or_insert(NodeObject { module: Module::Vtep, spec });
        }
        let file = self.disk.files.contains_key(&Key::File(ours::UNIT_FILE.to_owned()));
        let enabled = self.disk.enabled.contains(ours::UNIT);
        if file || enabled || self.volatile.agent.is_some() {
            let (running, config) = self.volatile.agent.clone().unwrap_or_default();
            let state = if self.volatile.agent.is_some() { "active" } else { "inactive" }.to_owned();
            let name = ours::UNIT.to_owned();
            let unit = Unit { name, enabled: enabled && file, state, reload_needed: false, running, config };
            let object = NodeObject { module: Module::Agent, spec: Spec::Unit(unit) };
            objects.insert(object.key(), object);
        }
        for name in &self.disk.packages {
            let spec = Spec::Package(Package { name: name.clone() });
            objects.insert(spec.key(), NodeObject { module: Module::Agent, spec });
        }
        objects.into_values().collect()
    }

    /// What the agent does.
    pub(crate) fn converge(&mut self) {
        let mut desired = self.desired();
        desired.retain(|o| o.module != Module::Agent);
        let mut now = self.objects();
        now.retain(|o| o.module != Module::Agent);
        for change in diff(&now, &desired) {
            match (change.after(), change.key()) {
                (after, Key::Binary(_) | Key::Symlink(_) | Key::File(_)) => {
                    match after {
                        Some(_) if self.disk.full => {}
                        Some(after) => drop(self.disk.files.insert(after.key(), after.clone())),
                        None => drop(self.disk.files.remove(&change.key())),
                    };
                }
                _ => self.change_kernel(&change),
            }
        }
    }

    /// A change of what lives in the kernel. A link takes its own with it.
    pub(crate) fn change_kernel(&mut self, change: &Change<NodeObject>) {
        let key = change.key();
        if matches!(change, Change::Delete { .. } | Change::Replace { .. }) {
            self.volatile.kernel.remove(&key);
            self.volatile.kernel.retain(|_, o| o.parent().as_ref() != Some(&key));
            if let Key::Sysctl(name) = &key {
                self.disk.originals.remove(name);
            }
        }
        if let Some(after) = change.after() {
            if let Key::Sysctl(name) = &key {
                self.disk.originals.insert(name.clone());
            }
            self.volatile.kernel.insert(key, after.clone());
        }
    }

    /// A change of a unit: its link, and its process.
    pub(crate) fn change_unit(&mut self, change: &Change<NodeObject>, boot: bool) -> Result<(), String> {
        let Some(NodeObject { spec: Spec::Unit(unit), .. }) = change.after() else {
            self.disk.enabled.remove(ours::UNIT);
            self.volatile.agent = None;
            return Ok(());
        };
        if unit.enabled {
            self.disk.enabled.insert(unit.name.clone());
        } else {
            self.disk.enabled.remove(&unit.name);
        }
        if boot {
            return Ok(());
        }
        self.volatile.agent = None;
        if unit.state == "active" {
            self.start_agent();
            if self.volatile.agent.is_none() {
                return Err("it is failed after its start".to_owned());
            }
        }
        Ok(())
    }

    /// A change of a file. What was kept of it comes back without needing room.
    pub(crate) fn change_file(
        &mut self,
        change: &Change<NodeObject>,
        secrets: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let key = change.key();
        let Some(after) = change.after() else {
            self.disk.files.remove(&key);
            return Ok(());
        };
        if self.disk.undo.get(&key) != Some(after) && self.disk.previous.1.get(&key) != Some(after) {
            match &after.spec {
                Spec::File(file) => match &file.content {
                    Content::Text(_) => {}
                    Content::Opaque(what) => return Err(format!("{what} was not kept")),
                    Content::Secret(summary) if secrets.contains_key(summary) => {}
                    Content::Secret(_) => return Err("the secret is not at hand".to_owned()),
                },
                Spec::Binary(binary) if binary.sha256 != self.digest => {
                    return Err("this is not the running binary".to_owned());
                }
                _ => {}
            }
            if self.disk.full && !matches!(key, Key::Symlink(_)) {
                return Err("no space left on device".to_owned());
            }
        }
        self.disk.files.insert(key, after.clone());
        Ok(())
    }
}
