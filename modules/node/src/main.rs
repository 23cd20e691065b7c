//! The binary on a node: agent, CNI plugin and the engine's remote end.

mod cni;

use std::process::ExitCode;

fn main() -> ExitCode {
    if cni::is_called() {
        return cni::run();
    }
    ExitCode::SUCCESS
}
