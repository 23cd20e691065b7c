//! Three real systemd nodes on one machine.
