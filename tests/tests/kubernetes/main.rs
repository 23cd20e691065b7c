//! Three nodes as a Kubernetes cluster whose only network software is homelab.
//!
//! The API is in the LAN: real etcd and kube-apiserver where `KUBEBUILDER_ASSETS` has them, else the tests' own
//! (`homelab-test-api`); the run says which. `homelab apply` makes accounts, roles and tokens in it, and agents and controller
//! are the real ones. No kubelet and no controller manager run: Nodes, Services and EndpointSlices are written by the tests
//! as these would write them, and pods are containers of containerd with the lab's CNI.
//!
//! Scenarios have the names of Kubernetes' end-to-end tests (`test/e2e/network`) whose behaviour they prove, where there
//! is one.
//!
//! `HOMELAB_TEST_KEEP=1 cargo test -p homelab-tests --test kubernetes hold` leaves API and nodes running until Ctrl-C, and
//! says how to reach them.

use homelab_tests::{Cluster, run_on_stage};

mod cluster_ip;
mod faults;
mod load_balancer;
mod policies;
mod stage;
mod types;

use stage::Stage;

/// `module: scenario, ...;` as the harness takes them.
macro_rules! acts {
    ($($module:ident: $($act:ident),+;)+) => {
        vec![$($((
            concat!(stringify!($module), "::", stringify!($act)),
            $module::$act as fn(&mut Cluster, &mut Stage),
        )),+),+]
    };
}

fn main() {
    let mut acts = acts! {
        cluster_ip: homelab_makes_what_it_needs_in_the_api, should_serve_a_basic_endpoint_from_pods;
        policies: should_be_able_to_create_a_functioning_node_port_service, should_be_able_to_switch_session_affinity,
            should_fall_back_to_terminating_endpoints, should_fall_back_to_local_terminating_endpoints,
            should_respect_internal_policy_local, should_only_target_nodes_with_endpoints,
            should_preserve_udp_for_a_cluster_ip_service, should_preserve_udp_for_a_node_port_service;
        types: should_be_able_to_change_from_external_name_to_cluster_ip,
            should_be_able_to_change_from_external_name_to_node_port,
            should_be_able_to_change_from_cluster_ip_to_external_name,
            should_be_able_to_change_from_node_port_to_external_name,
            should_be_updated_after_adding_or_deleting_ports, should_be_able_to_change_the_type_and_ports,
            should_implement_service_proxy_name, should_leave_headless_and_other_classes_alone;
        load_balancer: should_handle_cleanup_finalizer, addresses_are_of_the_pool_and_each_given_once,
            should_only_allow_access_from_source_ranges, pools_of_metallb_are_read,
            should_be_able_to_switch_session_affinity, should_be_able_to_create_without_node_port_and_change_it,
            should_preserve_udp_for_a_load_balancer_service;
        faults: api_server_killed_and_back, agent_restarted_with_the_api_down, api_server_partitioned_from_one_node,
            api_server_restored_from_an_older_state, token_revoked, controller_hands_over_in_order,
            controller_fails_over;
    };
    if std::env::var_os("HOMELAB_TEST_KEEP").is_some() {
        acts.push(("hold", hold));
    }
    run_on_stage("kubernetes", stage::set, &acts)
}

/// For people who want to try something on it.
fn hold(cluster: &mut Cluster, stage: &mut Stage) {
    eprintln!(
        "  {} at https://192.168.50.1:6443, namespace of network {}\n  kubeconfig: {}\n  nodes: cargo xtask lab --name {} \
         exec node1 -- COMMAND\n  cluster file: {}\n  Ctrl-C ends it; then: cargo xtask lab --name {3} down",
        stage.kube.name(),
        cluster.lab.netns_path("router").display(),
        stage.kube.kubeconfig().display(),
        cluster.lab.name(),
        cluster.write_file(),
    );
    loop {
        std::thread::park();
    }
}
