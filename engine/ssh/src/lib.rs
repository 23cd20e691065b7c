//! The one Transport that opens SSH.
