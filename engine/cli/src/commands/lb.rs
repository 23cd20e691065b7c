//! `homelab status lb`

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homelab_driver::{Goal, LbPicture, LbRow, PlannedNode, Prepared};
use homelab_model::LbNode;

use super::session::{Session, by_node};
use super::{DONE, FAILED, output};
use crate::args::{Format, Global};
use crate::error::CliError;
use crate::planfile::utc;
use crate::render::page::{Page, bold, line};
use crate::render::{ErrorText, LbAnswer, Shown, is_called, lb_human, lb_json, lb_markdown, lb_warnings};
use crate::terminal::Terminal;

/// A watched table is drawn anew after this time, changed or not.
const REDRAW: Duration = Duration::from_secs(2);
/// Pause between two questions to a watched node.
const PAUSE: Duration = Duration::from_millis(500);
/// Changes are looked for this often.
const LOOK: Duration = Duration::from_millis(100);
/// To the upper left, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Which addresses are asked for.
struct Wanted<'a>(Option<&'a str>);

impl Wanted<'_> {
    fn has(&self, row: &LbRow) -> bool {
        let Some(name) = self.0 else { return true };
        match name.parse::<IpAddr>() {
            Ok(address) => row.address == address,
            Err(_) => row.services.iter().any(|full| is_called(full, name)),
        }
    }

    /// The picture with these alone.
    fn of(&self, mut picture: LbPicture) -> LbPicture {
        picture.addresses.retain(|row| self.has(row));
        picture
    }
}

pub(crate) fn run(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    wanted: Option<&str>,
    watched: bool,
) -> Result<u8, CliError> {
    let wanted = Wanted(wanted);
    if watched {
        return watch(global, terminal, session, &wanted);
    }
    let prepared = session.prepare(terminal, Goal::Desired)?;
    let answers = session.with(terminal, None, |engine| engine.load_balancers(&prepared));
    let nodes = by_node(&prepared, answers);
    prepared.close(session.parallel());
    let all = LbPicture::of(&nodes);
    let picture = wanted.of(all.clone());
    let failed = nodes.iter().any(|(_, answer)| answer.is_err());
    if let (Some(name), true, false) = (wanted.0, picture.addresses.is_empty(), failed) {
        return Err(unknown(name, &all));
    }
    let json = lb_json(&session.cluster.name, &nodes, &picture);
    let human = |paint| lb_human(&nodes, &picture, paint);
    output::deliver(global, terminal, &json, human, || lb_markdown(&nodes, &picture))?;
    Ok(if failed || !picture.is_good() { FAILED } else { DONE })
}

/// What the status of the nodes should say of load-balancer addresses. Nothing is asked where none are announced.
pub(super) fn warnings(session: &Session, terminal: &Terminal, prepared: &Prepared) -> Vec<String> {
    let told = |node: &PlannedNode| {
        prepared.observed(&node.name).and_then(|o| o.spec.as_ref()).is_some_and(|spec| spec.speaker.is_some())
    };
    if !prepared.plan.nodes.iter().any(told) {
        return Vec::new();
    }
    let answers = session.with(terminal, None, |engine| engine.load_balancers(prepared));
    lb_warnings(&LbPicture::of(&by_node(prepared, answers)))
}

fn unknown(name: &str, all: &LbPicture) -> CliError {
    let error =
        CliError::new(format!("no node knows a load-balancer address, or a service with one, {name:?}"));
    let known: Vec<String> =
        all.addresses.iter().map(|row| format!("{} ({})", row.address, row.services.join(", "))).collect();
    match known.is_empty() {
        true => error.hint("no node knows any; homelab apply tells them those of the cluster file"),
        false => error.hint(format!("they know {}", known.join("; "))),
    }
}

/// What each node said last.
type Said = Mutex<BTreeMap<String, Result<LbNode, ErrorText>>>;

fn watch(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    wanted: &Wanted<'_>,
) -> Result<u8, CliError> {
    session.signals.watch();
    let mut prepared = session.prepare(terminal, Goal::Desired)?;
    let names: Vec<String> = prepared.plan.nodes.iter().map(|node| node.name.clone()).collect();
    let away = prepared.plan.nodes.iter().filter(|node| prepared.observed(&node.name).is_none());
    let away = away.filter_map(|n| Some((n.name.clone(), Err(ErrorText::of(n.outcome.as_ref().err()?)))));
    let said: Said = Mutex::new(away.collect());
    let hear = |name: &str, answer: Result<LbNode, homelab_driver::NodeError>| {
        let answer = answer.map_err(|error| ErrorText::of(&error));
        said.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), answer);
    };
    let result = std::thread::scope(|threads| {
        threads
            .spawn(|| session.silently(|engine| engine.follow_load_balancers(&mut prepared, PAUSE, &hear)));
        let shown = show(global, terminal, session, wanted, &names, &said);
        // The threads end with the run.
        session.signals.cancel.store(true, Ordering::SeqCst);
        shown
    });
    prepared.close(session.parallel());
    result.map(|()| DONE)
}

/// Shows every change, until the run is stopped.
fn show(
    global: &Global,
    terminal: &Terminal,
    session: &Session,
    wanted: &Wanted<'_>,
    names: &[String],
    said: &Said,
) -> Result<(), CliError> {
    let start = Instant::now();
    let mut last: Option<(LbPicture, Vec<String>)> = None;
    let mut drawn = start;
    while !session.stopped() {
        let answers = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The first word of all, but for one that lets us wait.
        if answers.len() < names.len() && start.elapsed() < REDRAW {
            std::thread::sleep(LOOK);
            continue;
        }
        let nodes: Vec<LbAnswer> = names
            .iter()
            .map(|name| {
                let waiting = || Err(ErrorText { message: "no answer yet".to_owned(), hints: Vec::new() });
                (name.clone(), answers.get(name).cloned().unwrap_or_else(waiting))
            })
            .collect();
        let picture = wanted.of(LbPicture::of(&nodes));
        let errors =
            nodes.iter().filter_map(|(_, answer)| Some(answer.as_ref().err()?.message.clone())).collect();
        let state = (picture.still(), errors);
        if last.as_ref() != Some(&state) || (terminal.redraws && drawn.elapsed() >= REDRAW) {
            let json = lb_json(&session.cluster.name, &nodes, &picture);
            output::into(global, &json)?;
            terminal.out(&block(global, terminal, &nodes, &picture, &json))?;
            (last, drawn) = (Some(state), Instant::now());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The picture with its time, where people read it; else a line or a table for each change.
fn block(
    global: &Global,
    terminal: &Terminal,
    nodes: &[LbAnswer],
    picture: &LbPicture,
    json: &serde_json::Value,
) -> Shown {
    match global.format {
        Format::Json => Shown::json_line(json),
        Format::Markdown => Shown::own(format!("{}\n", lb_markdown(nodes, picture))),
        Format::Human => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let mut head = Page::new(terminal.paint);
            line!(head, bold(utc(now)));
            let body = lb_human(nodes, picture, terminal.paint);
            let clear = if terminal.redraws { CLEAR } else { "" };
            Shown::own(format!("{clear}{}{body}\n", head.end()))
        }
    }
}
