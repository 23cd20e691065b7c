//! homelab.yaml text to a Cluster, with every problem at its place.
