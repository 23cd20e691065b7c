//! The only crate with effects on a Linux node.
