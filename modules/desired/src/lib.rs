//! Everything that a node should hold, composed from the modules.
