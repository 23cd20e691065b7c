//! Connections to a Kubernetes API server: the laptop's by a kubeconfig, an agent's by its own credential.
