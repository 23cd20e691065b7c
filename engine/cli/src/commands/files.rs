//! Files that the command prints about itself.

use clap::CommandFactory;

use super::DONE;
use crate::args::Cli;
use crate::error::CliError;
use crate::render::Shown;
use crate::terminal::Terminal;

pub(crate) fn schema(terminal: &Terminal) -> Result<u8, CliError> {
    terminal.out(&Shown::own(homelab_config::schema_text()))?;
    Ok(DONE)
}

pub(crate) fn completions(terminal: &Terminal, shell: clap_complete::Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "homelab", &mut script);
    terminal.out(&Shown::own(String::from_utf8_lossy(&script).into_owned()))?;
    Ok(DONE)
}

pub(crate) fn man(terminal: &Terminal) -> Result<u8, CliError> {
    terminal.out(&Shown::own(manual()?))?;
    Ok(DONE)
}

/// homelab(1) with all its subcommands, as roff.
fn manual() -> Result<String, CliError> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    let own = |c: &&clap::Command| c.get_name() != "help";
    for subcommand in command.get_subcommands().filter(own) {
        section(&mut page, subcommand, subcommand.get_name())?;
        for below in subcommand.get_subcommands().filter(own) {
            section(&mut page, below, &format!("{} {}", subcommand.get_name(), below.get_name()))?;
        }
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn section(page: &mut Vec<u8>, command: &clap::Command, name: &str) -> Result<(), CliError> {
    let man = clap_mangen::Man::new(command.clone());
    page.extend_from_slice(format!(".SH {}\n", name.to_uppercase()).as_bytes());
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_names_every_command() {
        let page = manual().unwrap();
        for name in [
            "validate",
            "plan",
            "apply",
            "confirm",
            "rollback",
            "destroy",
            "drift",
            "unlock",
            "rotate-key",
            "status",
            "status services",
            "trace",
            "schema",
            "completions",
            "man",
        ] {
            assert!(page.contains(&format!(".SH {}\n", name.to_uppercase())), "{name}");
        }
        assert!(page.contains("detailed"));
    }

    #[test]
    fn every_shell_has_completions() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "homelab", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in [
                "detailed-exitcode",
                "confirm",
                "rollback",
                "drift",
                "unlock",
                "rotate-key",
                "services",
                "trace",
            ] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
