//! Keeps one lab node running; started by the lab, see the crate's `supervisor` module.

fn main() -> std::process::ExitCode {
    homelab_lab::supervisor_main()
}
