//! A lab that goes down with the value that stands for it.

use crate::process::Process;
use crate::{Lab, LabOptions, Result};
use std::ops::{Deref, DerefMut};

/// A lab for a test: goes down on drop, also when the test panics. One whose process was killed is taken down by
/// the next guard that comes up.
#[derive(Debug)]
pub struct LabGuard(Option<Lab>, String);

impl LabGuard {
    /// Makes a lab; see [`Lab::up`].
    pub fn up(options: LabOptions) -> Result<Self> {
        Lab::clear_orphans()?;
        let mut guard = Self(None, options.name.clone());
        // The guard is there first: a lab that comes up only in part goes down too.
        guard.0 = Some(Lab::up_owned(options, Process::current())?);
        Ok(guard)
    }

    /// Takes the lab down now, and says how that went.
    pub fn down(mut self) -> Result<()> {
        self.0 = None;
        Lab::down_name(&std::mem::take(&mut self.1))
    }

    fn lab(&self) -> &Lab {
        self.0.as_ref().expect("set by `up`, taken by `down` alone")
    }
}

impl Deref for LabGuard {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab()
    }
}

impl DerefMut for LabGuard {
    fn deref_mut(&mut self) -> &mut Lab {
        self.0.as_mut().expect("set by `up`, taken by `down` alone")
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        if self.1.is_empty() {
            return;
        }
        if let Err(error) = Lab::down_name(&self.1) {
            eprintln!("lab {}: {error}", self.1);
        }
    }
}
