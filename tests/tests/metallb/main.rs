//! MetalLB's end-to-end tests of its L2 mode (`e2etest/l2tests`), by their names, on three real nodes: a client on two LANs
//! asks by ARP and neighbour discovery, and reaches the addresses, both families. Cases of a group go through their steps
//! together, each with pools, services and advertisements of its own.

use homelab_tests::{Cluster, run_on_stage};

mod alloc;
mod assignment;
mod case;
mod dual_stack;
mod interface_selector;
mod l2;
mod node_selector;
mod preferred_node;
mod service_selector;
mod stage;

use stage::Stage;

/// `groups { module: case, ...; }` for cases that go together, `acts { module: act, ...; }` for what goes alone.
macro_rules! acts {
    (groups { $($group:ident: $($case:ident),+;)+ } acts { $($module:ident: $($act:ident),+;)+ }) => {
        &[
            $($((
                concat!(stringify!($group), "::", stringify!($case)),
                (|cluster, stage| {
                    let _ = $group::$case;
                    stage.prove(cluster, stringify!($group), stringify!($case), $group::all);
                }) as fn(&mut Cluster, &mut Stage),
            ),)+)+
            $($((
                concat!(stringify!($module), "::", stringify!($act)),
                $module::$act as fn(&mut Cluster, &mut Stage),
            ),)+)+
        ]
    };
}

fn main() {
    run_on_stage(
        "metallb",
        stage::set,
        acts! {
            groups {
            interface_selector: validate_l2_service_status_interface, validate_the_lb_ips_mac, modify_l2_interface,
                specify_not_existing_interfaces, address_pool_connected_with_two_l2_advertisements, node_selector;
            node_selector: should_work_selecting_one_node, should_work_with_multiple_node_selectors,
                should_work_when_adding_nodes;
            service_selector: should_only_advertise_services_matching_both_pool_and_service_selectors,
                should_announce_from_exactly_one_node_when_both_advertisements_match_the_service,
                should_not_announce_when_no_advertisement_matches_both_service_and_node,
                should_use_or_logic_for_multiple_selectors;
            preferred_node:
                should_prefer_the_labeled_node_and_fall_back_to_the_baseline_election_when_the_label_is_removed,
                should_behave_like_the_baseline_advertisement_when_no_node_matches_the_preferred_selector,
                should_re_elect_when_the_l2advertisement_spec_changes_at_runtime,
                should_respect_node_selectors_as_a_hard_filter_while_preferred_node_selectors_orders_the_eligible_set,
                should_announce_from_the_node_selectors_set_when_it_is_disjoint_from_preferred_node_selectors,
                should_sum_weights_across_multiple_l2advertisements_targeting_the_same_pool,
                should_scope_preferred_node_selectors_to_services_matching_service_selectors;
            l2: should_work_for_external_traffic_policy_cluster, should_work_for_external_traffic_policy_local;
            assignment: changing_the_service_type_to_cluster_ip, deleting_the_service,
                should_reconsider_services_when_sharing_the_ip_and_conditions_change, removes_all_pools,
                reallocates_svc_after_deleting_a_pool, with_namespace, with_service_label,
                with_namespace_and_service_label, loadbalancer_class_should_not_get_an_ip,
                address_pool_defined_by_address_range, address_pool_defined_by_network_prefix,
                validate_requesting_a_specific_address_pool;
            dual_stack: should_select_dual_stack_pool_if_available,
                should_prefer_primary_ip_ipv4_family_among_single_stack_pools_by_default,
                should_prefer_primary_ipv6_ip_family_among_single_stack_pools,
                additional_ip_should_be_assigned_when_the_assigned_1_stack_pool_becomes_dual_stack,
                single_stack_pool_should_assign_based_on_svc_changes_between_prefer_and_require_dual_stack,
                svc_assigned_from_single_stack_pool_should_not_jump_to_dual_stack_pool_when_its_available,
                when_current_dualstack_pool_becomes_single_stack_svc_should_pick_another_dualstack_pool_if_possible;
            } acts {
            preferred_node:
                should_fail_over_when_the_preferred_node_becomes_unschedulable_and_reclaim_when_it_returns;
            assignment: should_preserve_the_same_external_ip_after_controller_restart, with_only_priority;
            l2: should_work_with_mixed_protocol_services,
                different_services_sharing_the_same_ip_should_advertise_from_the_same_node,
                it_should_be_work_when_adding_node_exclude_balancers_label_to_a_node,
                should_not_be_announced_from_a_node_with_a_network_unavailable_condition,
                should_move_l2_advertisement_when_the_announcing_node_stops_running_a_ready_speaker;
            }
        },
    )
}
