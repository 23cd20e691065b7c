//! The CNI plugin: objects, templates and request handling.
