//! Progress: bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use homelab_driver::{Event, Observer, Silent};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::render::page::clean;
use crate::terminal::Terminal;

/// The observer that fits the terminal.
pub(crate) fn observer<'a>(terminal: &'a Terminal, nodes: &[String]) -> Box<dyn Observer + 'a> {
    if terminal.quiet {
        Box::new(Silent)
    } else if terminal.draws {
        Box::new(Bars::new(&terminal.bars, nodes))
    } else {
        Box::new(Lines { terminal, last: Mutex::default() })
    }
}

/// One line per node that is redrawn.
struct Bars {
    bars: MultiProgress,
    width: usize,
    nodes: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Bars {
    fn new(bars: &MultiProgress, nodes: &[String]) -> Bars {
        let width = nodes.iter().map(String::len).max().unwrap_or(0);
        Bars { bars: bars.clone(), width, nodes: Mutex::default() }
    }

    fn bar(&self, node: &str) -> ProgressBar {
        let make = || {
            let bar = self.bars.add(ProgressBar::no_length());
            bar.set_style(style("{spinner} {prefix} {msg}"));
            bar.set_prefix(format!("{node:<width$}", width = self.width));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        };
        match self.nodes.lock() {
            Ok(mut nodes) => nodes.entry(node.to_owned()).or_insert_with(make).clone(),
            Err(_) => ProgressBar::hidden(),
        }
    }

    fn message(&self, node: &str, text: &str) {
        let bar = self.bar(node);
        bar.set_style(style("{spinner} {prefix} {msg}"));
        bar.set_message(clean(text));
    }

    fn end(&self, node: &str) {
        if let Some(bar) = self.nodes.lock().ok().and_then(|mut nodes| nodes.remove(node)) {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in self.nodes.lock().map(|mut n| std::mem::take(&mut *n)).unwrap_or_default().into_values() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Observer for Bars {
    fn event(&self, node: &str, event: Event<'_>) {
        match event {
            Event::Connecting => self.message(node, "connecting"),
            Event::Uploading { sent, total } => {
                let bar = self.bar(node);
                bar.set_style(style(
                    "{spinner} {prefix} sending homelab-node {bar:20} {bytes}/{total_bytes}",
                ));
                bar.set_length(total);
                bar.set_position(sent);
            }
            Event::Observed
            | Event::Unreachable(_)
            | Event::Done
            | Event::Failed(_)
            | Event::RolledBack(_) => self.end(node),
            Event::Applying { done, total } => {
                let bar = self.bar(node);
                bar.set_style(style("{spinner} {prefix} applying {bar:20} {pos}/{len}"));
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
            Event::Locking => self.message(node, "taking the lock"),
            Event::Waiting(holder) => self.message(node, &format!("waiting for {holder}")),
            Event::Installing(package) => self.message(node, &format!("installing the package {package}")),
            Event::Arming => self.message(node, "arming the rollback"),
            Event::Verifying => self.message(node, "verifying"),
            Event::Confirming => self.message(node, "confirming"),
            Event::Reconnecting => self.message(node, "lost, connecting again"),
            Event::RollingBack(reason) => self.message(node, &format!("rolling back: {reason}")),
        }
    }
}

/// A line per step; a step that repeats is said once.
struct Lines<'a> {
    terminal: &'a Terminal,
    last: Mutex<BTreeMap<String, String>>,
}

impl Observer for Lines<'_> {
    fn event(&self, node: &str, event: Event<'_>) {
        let text = match event {
            Event::Connecting
            | Event::Observed
            | Event::Unreachable(_)
            | Event::Locking
            | Event::Arming
            | Event::Verifying
            | Event::Confirming => return,
            Event::Waiting(holder) => format!("locked by {holder}; waiting"),
            Event::Reconnecting => "the connection was lost; connecting again".to_owned(),
            Event::RollingBack(reason) => format!("rolling back: {reason}"),
            Event::RolledBack(reason) => format!("rolled back: {reason}"),
            Event::Uploading { total, .. } => format!("sending homelab-node, {} KiB", total.div_ceil(1024)),
            Event::Applying { total: 1, .. } => "applying 1 change".to_owned(),
            Event::Applying { total, .. } => format!("applying {total} changes"),
            Event::Installing(package) => format!("installing the package {package}"),
            Event::Done => "done".to_owned(),
            Event::Failed(error) => format!("failed: {error}"),
        };
        let new = self.last.lock().is_ok_and(|mut last| {
            last.insert(node.to_owned(), text.clone()).is_none_or(|before| before != text)
        });
        if new {
            self.terminal.say(&format!("{node}: {text}"));
        }
    }
}
