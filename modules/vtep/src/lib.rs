//! The VXLAN tunnel endpoint as node objects.
