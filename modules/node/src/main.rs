//! The binary on a node: agent, CNI plugin and the engine's remote end.

fn main() {}
