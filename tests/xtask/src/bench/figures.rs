//! Figures, their medians and ratios.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

/// Several runs of one thing.
pub(super) struct Figure {
    /// What was done, e.g. `plan, nothing to do, 3 nodes`.
    pub(super) task: String,
    /// Who did it: `homelab`, a peer, or `floor`.
    pub(super) who: String,
    /// Unit of the values.
    pub(super) unit: String,
    /// One value a run.
    pub(super) values: Vec<f64>,
}

impl Figure {
    fn sorted(&self) -> Vec<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The value that 99 of 100 do not exceed, where there are enough of them.
    fn p99(&self) -> Option<f64> {
        let values = self.sorted();
        (values.len() >= MANY).then(|| values.get(values.len() * 99 / 100).copied()).flatten()
    }

    /// The middle value.
    pub(super) fn median(&self) -> f64 {
        let values = self.sorted();
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// All figures of a run.
#[derive(Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

/// So many values have a 99th percentile worth its name.
const MANY: usize = 100;

impl Report {
    /// Adds a figure and says so on stderr, so that a long run can be followed.
    pub(super) fn add(&mut self, task: &str, who: &str, unit: &str, values: Vec<f64>) {
        let figure = Figure { task: task.to_owned(), who: who.to_owned(), unit: unit.to_owned(), values };
        eprintln!("{task}: {who} {:.4} {unit} (median of {})", figure.median(), figure.values.len());
        self.figures.push(figure);
    }

    /// Adds what a benchmark's own process prints, a line each so that one can follow it: `task, who, unit, values` between
    /// tabs, the values between spaces, or `# ` and a remark.
    pub(super) fn follow(
        &mut self,
        mut child: std::process::Child,
        name: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
            let line = line?;
            if let Some(remark) = line.strip_prefix("# ") {
                self.remark(remark);
                continue;
            }
            let fields: Vec<&str> = line.split('\t').collect();
            let [task, who, unit, values] = fields[..] else {
                return Err(format!("not a figure: {line}").into());
            };
            let values = values.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
            self.add(task, who, unit, values);
        }
        if child.wait()?.success() { Ok(()) } else { Err(format!("{name} failed").into()) }
    }

    /// How many times as long homelab takes for one task as for another.
    pub(super) fn ratio(&self, task: &str, other: &str) -> Option<f64> {
        Some(self.ours(task, "ms")? / self.ours(other, "ms")?)
    }

    /// Median of what someone took for a task.
    pub(super) fn median(&self, task: &str, who: &str) -> Option<f64> {
        self.figures.iter().find(|f| f.task == task && f.who == who).map(Figure::median)
    }

    /// Adds what a figure cannot say, e.g. why there is none.
    pub(super) fn remark(&mut self, text: &str) {
        eprintln!("{text}");
        self.remarks.push(text.to_owned());
    }

    /// The figure that others of its task are compared with: homelab's own.
    fn ours(&self, task: &str, unit: &str) -> Option<f64> {
        self.figures
            .iter()
            .find(|f| f.task == task && f.unit == unit && f.who == "homelab")
            .map(Figure::median)
    }

    /// A table for people. `x` is the figure divided by homelab's: above 1, the other needs more.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut tasks: Vec<&str> = Vec::new();
        for figure in &self.figures {
            if !tasks.contains(&figure.task.as_str()) {
                tasks.push(&figure.task);
            }
        }
        let in_order = tasks.iter().flat_map(|task| self.figures.iter().filter(move |f| f.task == *task));
        let mut task = "";
        for figure in in_order {
            if figure.task != task {
                task = &figure.task;
                let _ = writeln!(text, "\n{task}");
            }
            let values = figure.sorted();
            let ratio = match self.ours(task, &figure.unit) {
                Some(ours) if ours > 0.0 => format!("{:.2}x", figure.median() / ours),
                _ => "-".to_owned(),
            };
            let (low, high) =
                (values.first().copied().unwrap_or(f64::NAN), values.last().copied().unwrap_or(f64::NAN));
            let tail = figure.p99().map_or(String::new(), |p99| format!("  p99 {p99:.4}"));
            let _ = writeln!(
                text,
                "  {:<62} {:>10.4} {:<8} {:>10.4} .. {:<10.4} {ratio:>8}{tail}",
                figure.who,
                figure.median(),
                figure.unit,
                low,
                high
            );
        }
        if !self.remarks.is_empty() {
            let _ = write!(text, "\n{}\n", self.remarks.join("\n"));
        }
        text
    }

    /// The same for machines.
    pub(super) fn json(&self) -> String {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|f| {
                json!({
                    "task": f.task, "who": f.who, "unit": f.unit, "median": f.median(), "p99": f.p99(), "values": f.values,
                    "ratio_to_homelab": self.ours(&f.task, &f.unit).map(|ours| f.median() / ours),
                })
            })
            .collect();
        format!("{:#}\n", json!({"format_version": 1, "figures": figures, "remarks": self.remarks}))
    }
}

/// What a command cost.
pub(super) struct Cost {
    /// Wall clock, seconds.
    pub(super) wall: f64,
    /// User and system time of the command and its children, seconds.
    pub(super) cpu: f64,
    /// Exit code; 255 if a signal ended it.
    pub(super) code: i32,
    /// stdout and stderr.
    pub(super) text: String,
}

/// Runs a command to its end.
pub(super) fn cost(command: &mut std::process::Command) -> std::io::Result<Cost> {
    let before = children_cpu()?;
    let start = std::time::Instant::now();
    let output = command.stdin(std::process::Stdio::null()).output()?;
    let wall = start.elapsed().as_secs_f64();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok(Cost { wall, cpu: children_cpu()? - before, code: output.status.code().unwrap_or(255), text })
}

fn children_cpu() -> std::io::Result<f64> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}
