//! stdout, stderr, questions.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use homelab_config::Problem;
use homelab_ssh::Prompt;
use indicatif::MultiProgress;
use miette::{GraphicalReportHandler, GraphicalTheme};

use crate::args::{Color, Format, Global};
use crate::error::CliError;
use crate::render::page::{Page, bold, clean, line, red};
use crate::render::{Paint, Shown, count};

/// The user's end.
pub(crate) struct Terminal {
    /// Colours of stdout.
    pub(crate) paint: Paint,
    /// Colours of stderr.
    pub(crate) stderr_paint: Paint,
    /// Whether somebody can answer.
    pub(crate) interactive: bool,
    /// Whether progress can be drawn.
    pub(crate) draws: bool,
    /// Whether what stands on stdout can be drawn over.
    pub(crate) redraws: bool,
    /// Neither progress nor warnings.
    pub(crate) quiet: bool,
    /// Progress bars; questions are asked with them out of the way.
    pub(crate) bars: MultiProgress,
    github: bool,
    stdout: Mutex<Box<dyn Write + Send>>,
}

impl Terminal {
    pub(crate) fn new(global: &Global) -> Terminal {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let colored = |terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            // https://no-color.org
            Color::Auto => {
                terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
            }
        };
        let stderr = std::io::stderr().is_terminal();
        Terminal {
            paint: Paint(colored(std::io::stdout().is_terminal())),
            stderr_paint: Paint(colored(stderr)),
            interactive: std::io::stdin().is_terminal() && stderr,
            draws: stderr && !global.quiet,
            redraws: std::io::stdout().is_terminal() && global.format == Format::Human,
            quiet: global.quiet,
            bars: MultiProgress::new(),
            github: std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true"),
            stdout: Mutex::new(Box::new(std::io::stdout())),
        }
    }

    /// A terminal of tests, at which nobody can be asked.
    #[cfg(test)]
    pub(crate) fn fake(global: &Global, stdout: Box<dyn Write + Send>) -> Terminal {
        Terminal {
            paint: Paint(false),
            stderr_paint: Paint(false),
            interactive: false,
            draws: false,
            redraws: false,
            github: false,
            stdout: Mutex::new(stdout),
            ..Terminal::new(global)
        }
    }

    /// A voice for threads of their own.
    pub(crate) fn voice(&self) -> Voice {
        Voice { paint: self.stderr_paint, bars: self.bars.clone() }
    }

    /// Writes to stdout, past the bars.
    pub(crate) fn out(&self, text: &Shown) -> Result<(), CliError> {
        self.bars.suspend(|| self.write(text))
    }

    fn write(&self, text: &Shown) -> Result<(), CliError> {
        let mut stdout = self.stdout.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes to stderr.
    pub(crate) fn show(&self, text: &Shown) {
        self.voice().show(text);
    }

    /// Writes one line to stderr.
    pub(crate) fn say(&self, text: &str) {
        self.voice().say(text);
    }

    /// Says what ended the command.
    pub(crate) fn error(&self, error: &CliError) {
        let mut page = Page::new(self.stderr_paint);
        match error {
            CliError::Reported => {}
            CliError::Config(problems) => {
                for problem in problems.iter() {
                    self.problem(problem);
                }
                let errors =
                    problems.iter().filter(|p| p.severity == homelab_config::Severity::Error).count();
                line!(page, red("error:"), format!(" {} in the cluster file", count(errors, "problem")));
            }
            CliError::Message { text, hints, .. } => {
                page.paragraph(&[red("error:"), " ".into()], text);
                for hint in hints {
                    page.paragraph(&[bold("hint:"), " ".into()], hint);
                }
            }
        }
        self.show(&page.end());
    }

    /// Shows a problem of the cluster file at its place, and in GitHub Actions at its line of the change, too.
    pub(crate) fn problem(&self, problem: &Problem) {
        let theme = match (self.stderr_paint.0, std::io::stderr().is_terminal()) {
            (true, _) => GraphicalTheme::unicode(),
            (false, true) => GraphicalTheme::unicode_nocolor(),
            (false, false) => GraphicalTheme::none(),
        };
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(theme).with_links(false);
        if handler.render_report(&mut text, problem).is_err() {
            text = format!("{}:{}:{}: {problem}", problem.file, problem.line, problem.column);
        }
        self.show(&Shown::colored(text.trim_end()));
        if self.github {
            // Workflow commands count on either stream; stdout may have to stay JSON.
            self.show(&Shown::own(format!("{}\n", problem.github())));
        }
    }

    /// Asks for a `yes`.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, CliError> {
        let mut page = Page::new(self.stderr_paint);
        line!(page, bold(question), " Only `yes` goes on: ");
        let question = page.end();
        self.bars.suspend(|| {
            let mut stderr = std::io::stderr();
            stderr.write_all(question.trim_end_matches('\n').as_bytes())?;
            stderr.flush()?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer)?;
            Ok(answer.trim() == "yes")
        })
    }
}

/// Speaks on stderr. Nothing can be done about a stderr that is gone.
pub(crate) struct Voice {
    paint: Paint,
    bars: MultiProgress,
}

impl Voice {
    fn show(&self, text: &Shown) {
        self.bars.suspend(|| {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        });
    }

    /// Writes one line.
    pub(crate) fn say(&self, text: &str) {
        let mut page = Page::new(self.paint);
        line!(page, text);
        self.show(&page.end());
    }
}

/// Asks for passwords and passphrases on the terminal.
pub(crate) struct AskSecret(pub(crate) MultiProgress);

impl Prompt for AskSecret {
    fn secret(&self, text: &str) -> Option<String> {
        self.0.suspend(|| {
            let terminal = console::Term::stderr();
            terminal.write_str(&clean(text)).ok()?;
            terminal.flush().ok()?;
            terminal.read_secure_line().ok()
        })
    }
}
