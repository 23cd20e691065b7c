//! Services, with real pods, real nodes and a client on the LAN.
//!
//! Scenarios have the names of Kubernetes' end-to-end tests (`test/e2e/network`) whose behaviour they prove, where there
//! is one; their titles stand above them. All share nodes and containers, and alter the services alone.

use homelab_tests::{Cluster, run_on_stage};

mod affinity;
mod cluster_ip;
mod conntrack;
mod load_balancer;
mod node_port;
mod rolling;
mod running;
mod sctp;
mod sources;
mod stage;
mod terminating;
mod types;

use stage::Stage;

/// `module: scenario, ...;` as the harness takes them.
macro_rules! acts {
    ($($module:ident: $($act:ident),+;)+) => {
        &[$($((
            concat!(stringify!($module), "::", stringify!($act)),
            $module::$act as fn(&mut Cluster, &mut Stage),
        )),+),+]
    };
}

fn main() {
    run_on_stage(
        "services",
        stage::set,
        acts! {
            cluster_ip: should_preserve_source_pod_ip, should_allow_pods_to_hairpin, nodes_are_clients_too,
                should_serve_multiport_endpoints, should_serve_endpoints_on_same_port_and_different_protocols,
                should_be_rejected_when_no_endpoints_exist, an_address_of_nobody_drops,
                should_respect_internal_policy_local_pod_to_pod,
                should_respect_internal_policy_local_host_network_to_pod,
                should_respect_internal_policy_local_to_host_network;
            node_port: should_be_able_to_create_a_functioning_node_port_service,
                should_support_external_policy_local_for_node_port, not_on_loopback;
            load_balancer: should_work_for_type_load_balancer, should_only_target_nodes_with_endpoints,
                should_work_from_pods, health_check_node_port, should_be_possible_to_connect_via_external_ip;
            sctp: should_allow_creating_a_basic_sctp_service, node_ports_and_load_balancers,
                should_be_rejected_when_no_endpoints_exist_by_sctp, conntrack_of_a_vanished_endpoint_is_cleared;
            affinity: should_work_for_cluster_ip, should_work_for_node_port, should_work_for_load_balancer,
                timeout_should_work_for_cluster_ip, timeout_should_work_for_node_port,
                should_be_able_to_switch;
            load_balancer: should_only_allow_access_from_source_ranges, should_handle_updates_to_external_policy;
            terminating: should_fall_back_with_internal_policy_cluster, should_fall_back_with_internal_policy_local,
                should_fall_back_with_external_policy_cluster, should_fall_back_with_external_policy_local,
                should_fail_health_check_node_port;
            types: should_be_updated_after_adding_or_deleting_ports, should_be_able_to_up_and_down_services,
                should_be_able_to_update_to_node_port_on_same_port_but_different_protocols,
                should_be_able_to_change_the_type_and_ports, should_be_able_to_change_from_and_to_external_name,
                external_name_and_headless_are_refused_with_a_reason;
            conntrack: should_preserve_udp_for_a_node_port_service, should_preserve_udp_for_a_cluster_ip_service,
                should_preserve_udp_with_internal_policy_local, should_preserve_udp_when_client_is_host_network,
                should_preserve_udp_when_unready_endpoints_get_ready, should_preserve_udp_for_a_load_balancer,
                should_clean_up_when_udp_target_port_changes, a_stale_udp_connection_ends_k8s_48370,
                should_not_be_vulnerable_to_the_invalid_state_bug;
            rolling: should_not_have_connectivity_disruption_during_rolling_update;
            running: should_work_after_restarting_kube_proxy, containers_are_followed, what_a_hand_does_is_seen_and_undone;
            sources: manifests_are_services, should_support_named_target_ports_that_differ, status_and_trace;
        },
    )
}
