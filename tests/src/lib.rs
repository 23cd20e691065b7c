//! Integration tests on real kernels.
