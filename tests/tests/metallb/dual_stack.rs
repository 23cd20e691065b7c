//! `assignment.go`, "PREFER DUALSTACK".

use homelab_tests::Cluster;
use serde_json::{Value, json};

use crate::alloc::{Case, Ground, Step, run};
use crate::case::cases;
use crate::stage::{Problems, Stage};

pub(crate) fn all(cluster: &mut Cluster, stage: &mut Stage) -> Problems {
    const CASES: &[Case] = cases![
        should_select_dual_stack_pool_if_available,
        should_prefer_primary_ip_ipv4_family_among_single_stack_pools_by_default,
        should_prefer_primary_ipv6_ip_family_among_single_stack_pools,
        additional_ip_should_be_assigned_when_the_assigned_1_stack_pool_becomes_dual_stack,
        single_stack_pool_should_assign_based_on_svc_changes_between_prefer_and_require_dual_stack,
        svc_assigned_from_single_stack_pool_should_not_jump_to_dual_stack_pool_when_its_available,
        when_current_dualstack_pool_becomes_single_stack_svc_should_pick_another_dualstack_pool_if_possible,
    ];
    run(cluster, stage, CASES)
}

fn v4(at: &Ground) -> Value {
    at.pool("ipv4", &[at.v4(0)], None)
}

fn v6(at: &Ground) -> Value {
    at.pool("ipv6", &[at.v6(0)], None)
}

fn dual(at: &Ground) -> Value {
    at.pool("dual", &[at.v4(1), at.v6(1)], None)
}

fn with(at: &Ground, policy: &str, families: &[&str]) -> [Value; 1] {
    [at.service("svc", &json!({ "ipFamilyPolicy": policy, "ipFamilies": families }))]
}

fn prefer(at: &Ground) -> [Value; 1] {
    with(at, "PreferDualStack", &["IPv4", "IPv6"])
}

/// "Should select dual-stack pool if available".
pub(crate) fn should_select_dual_stack_pool_if_available(at: &Ground) -> Vec<Step> {
    vec![Step::new(&[v4(at), v6(at), dual(at)], &prefer(at)).gets("svc", &[at.v4(1), at.v6(1)])]
}

/// "Should prefer primary ip ipv4 family among single-stack pools by default".
pub(crate) fn should_prefer_primary_ip_ipv4_family_among_single_stack_pools_by_default(
    at: &Ground,
) -> Vec<Step> {
    vec![Step::new(&[v6(at), v4(at)], &prefer(at)).gets("svc", &[at.v4(0)])]
}

/// "Should prefer primary ipv6 ip family among single-stack pools".
pub(crate) fn should_prefer_primary_ipv6_ip_family_among_single_stack_pools(at: &Ground) -> Vec<Step> {
    let service = with(at, "PreferDualStack", &["IPv6", "IPv4"]);
    vec![Step::new(&[v4(at), v6(at)], &service).gets("svc", &[at.v6(0)])]
}

/// "Additional ip should be assigned when the assigned 1-stack pool becomes dual-stack".
pub(crate) fn additional_ip_should_be_assigned_when_the_assigned_1_stack_pool_becomes_dual_stack(
    at: &Ground,
) -> Vec<Step> {
    let small = at.pool("pool", &[at.v4(1)], None);
    let large = at.pool("pool", &[at.v4(0), at.v4(1), at.v6(0)], None);
    vec![
        Step::new(&[small], &prefer(at)).gets("svc", &[at.v4(1)]),
        Step::new(&[large], &prefer(at)).gets("svc", &[at.v4(1), at.v6(0)]),
    ]
}

/// "Single-stack pool should assign based on svc changes between PreferDualStack and RequireDualStack".
pub(crate) fn single_stack_pool_should_assign_based_on_svc_changes_between_prefer_and_require_dual_stack(
    at: &Ground,
) -> Vec<Step> {
    let require = with(at, "RequireDualStack", &["IPv4", "IPv6"]);
    vec![
        Step::new(&[v4(at)], &prefer(at)).gets("svc", &[at.v4(0)]),
        Step::new(&[v4(at)], &require).gets("svc", &[]),
        Step::new(&[v4(at)], &prefer(at)).gets("svc", &[at.v4(0)]),
    ]
}

/// "Svc assigned from single-stack pool should not jump to dual-stack pool when it's available".
pub(crate) fn svc_assigned_from_single_stack_pool_should_not_jump_to_dual_stack_pool_when_its_available(
    at: &Ground,
) -> Vec<Step> {
    vec![
        Step::new(&[v4(at)], &prefer(at)).gets("svc", &[at.v4(0)]),
        Step::new(&[v4(at), dual(at)], &prefer(at)).gets("svc", &[at.v4(0)]),
    ]
}

/// "When current dualstack pool becomes single-stack, svc should pick another dualstack pool if possible".
pub(crate) fn when_current_dualstack_pool_becomes_single_stack_svc_should_pick_another_dualstack_pool_if_possible(
    at: &Ground,
) -> Vec<Step> {
    let edited = |addresses: &[_]| at.pool("to-edit", addresses, None);
    vec![
        Step::new(&[edited(&[at.v4(0), at.v6(0)])], &prefer(at)).gets("svc", &[at.v4(0), at.v6(0)]),
        Step::new(&[edited(&[at.v6(0)]), dual(at)], &prefer(at)).gets("svc", &[at.v4(1), at.v6(1)]),
    ]
}
