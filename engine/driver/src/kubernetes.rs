//! The Kubernetes side of a plan: objects of the API, and the agents' tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use homelab_desired::kubernetes::{api_objects, node_of};
use homelab_model::kubernetes::service_account;
use homelab_model::{
    ApiChange, ApiEndpoint, ApiError, ApiKind, ApiObject, ApiService, ApiState, Change, Cluster, Content,
    File, Impact, KubernetesSpec, Module, NodeObject, NodeSpec, NodesFrom, Object, Observed, Problem, Spec,
    Summary, Token, ours, plan_api, planned,
};
use homelab_protocol::{Request, Response};
use ipnet::IpNet;

use crate::engine::{Aim, Engine, Goal, Live, Prepared, is_chosen};
use crate::keys::{NEW_KEYS, rename, rename_object};
use crate::{ApplyError, parallel};

/// A token that ends within this time is replaced, seconds: its agent should have done so long ago.
const SOON: u64 = 3600;

/// The Kubernetes API as the laptop uses it. Nothing in it waits for long.
pub trait Kubernetes: Sync {
    /// How agents reach it, as far as the laptop's own access tells.
    fn endpoint(&self) -> ApiEndpoint;
    /// Looks at what homelab makes there, and at the Nodes.
    fn observe(&self) -> Result<ApiState, ApiError>;
    /// Carries out one change. Deleting what is gone already is no error.
    fn carry_out(&self, change: &Change<ApiObject>) -> Result<(), ApiError>;
    /// A new bound token of a ServiceAccount in [`ours::KUBERNETES_NAMESPACE`].
    fn token(&self, account: &str) -> Result<Token, ApiError>;
}

/// The Kubernetes API's part of a plan.
#[derive(Debug, Clone)]
pub struct PlannedKubernetes {
    /// URL of the API.
    pub server: String,
    /// Its changes, or why there is no plan for it.
    pub outcome: Result<Vec<ApiChange>, ApiError>,
}

impl PlannedKubernetes {
    /// Its changes.
    pub fn changes(&self) -> &[ApiChange] {
        self.outcome.as_deref().unwrap_or_default()
    }

    /// Counts of its changes.
    pub fn summary(&self) -> Summary {
        self.changes().iter().map(|change| change.action).collect()
    }

    /// The worst impact of its changes.
    pub fn impact(&self) -> Impact {
        self.changes().iter().map(|c| c.impact).max().unwrap_or(Impact::None)
    }
}

/// How it went in the Kubernetes API.
#[derive(Debug)]
pub enum KubernetesOutcome {
    /// Changed.
    Changed(Summary),
    /// There was nothing to do.
    Unchanged,
    /// There was no plan for it.
    Unplanned(ApiError),
    /// It failed after some of its changes.
    Failed {
        /// What was changed.
        done: Summary,
        /// What failed.
        error: ApiError,
    },
    /// It was left as it is, because nodes still need it, or the user stopped the run.
    NotStarted,
}

impl KubernetesOutcome {
    /// Whether it is as desired.
    pub fn is_good(&self) -> bool {
        matches!(self, KubernetesOutcome::Changed(_) | KubernetesOutcome::Unchanged)
    }
}

/// What was seen of the API.
pub(crate) struct Seen {
    pub(crate) endpoint: ApiEndpoint,
    pub(crate) state: Result<ApiState, ApiError>,
}

impl Seen {
    fn planned(&self, outcome: Result<Vec<ApiChange>, ApiError>) -> PlannedKubernetes {
        PlannedKubernetes { server: self.endpoint.servers.first().cloned().unwrap_or_default(), outcome }
    }
}

fn object(summary: String) -> NodeObject {
    let path = ours::KUBERNETES_TOKEN.to_owned();
    let file = File { path, mode: 0o600, owner: "0:0".to_owned(), content: Content::Secret(summary) };
    NodeObject { module: Module::Agent, spec: Spec::File(file) }
}

/// What objects say of the token of an account with this uid, as [`Token::summary`] does.
fn summary(account: &str, uid: &str) -> String {
    format!("{}/{account}, uid {uid}", ours::KUBERNETES_NAMESPACE)
}

/// What a plan says of the token of an account that is to be made.
fn new(account: &str) -> String {
    format!("{}/{account}: {NEW_KEYS}", ours::KUBERNETES_NAMESPACE)
}

fn token_of(object: &NodeObject) -> Option<&str> {
    match &object.spec {
        Spec::File(File { path, content: Content::Secret(summary), .. })
            if path == ours::KUBERNETES_TOKEN =>
        {
            Some(summary)
        }
        _ => None,
    }
}

/// What a node says of its token.
fn held(observed: &Observed) -> Option<&str> {
    observed.objects.iter().find_map(token_of)
}

/// The token that a node of `spec` should hold, as far as can be said without the API: any of its own account.
pub(crate) fn unseen(spec: &NodeSpec, observed: &Observed) -> Option<NodeObject> {
    let account = &spec.kubernetes.as_ref()?.service_account;
    let own = format!("{}/{account}, ", ours::KUBERNETES_NAMESPACE);
    let held = held(observed).filter(|summary| summary.starts_with(&own));
    Some(object(held.map_or_else(|| new(account), str::to_owned)))
}

/// Load-balancer addresses of the API's services, which no service of the file is to get.
fn taken(state: &ApiState) -> BTreeMap<IpAddr, String> {
    let of = |service: &ApiService| {
        let holder = format!("{} of the Kubernetes API", service.full_name());
        service.addresses.iter().map(|ip| (*ip, holder.clone())).collect::<Vec<_>>()
    };
    state.services.iter().flat_map(of).collect()
}

/// What agents say of resources of MetalLB that do not mean what they say, each once.
pub(crate) fn agents_notes(live: &BTreeMap<String, Live>) -> BTreeSet<String> {
    let facts = live.values().filter_map(|l| l.observed.facts.agent.as_ref()?.kubernetes.as_ref());
    facts.flat_map(|fact| fact.notes.iter().map(|note| format!("MetalLB's {note}"))).collect()
}

/// Whether the nodes use the API that is reached by this endpoint.
fn is_theirs(endpoint: &ApiEndpoint, live: &BTreeMap<String, Live>) -> bool {
    let mut told = live.values().filter_map(|l| l.observed.spec.as_ref()?.kubernetes.as_ref());
    told.any(|spec| {
        spec.servers.iter().any(|server| endpoint.servers.contains(server))
            || (spec.ca.is_some() && spec.ca == endpoint.ca)
    })
}

/// The cluster with the pod ranges that the API's Nodes have, and the addresses of its Services; what contradicts the file, by node; and what the user
/// should know.
pub(crate) fn with_nodes(
    cluster: &Cluster,
    state: &ApiState,
    warnings: &mut Vec<String>,
) -> (Cluster, BTreeMap<String, Vec<Problem>>) {
    let mut merged = cluster.clone();
    merged.load_balancer.taken = taken(state);
    let nodes = &state.nodes;
    let mut problems: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
    for node in &mut merged.nodes {
        let Some(api) = nodes.iter().find(|api| api.name == node.name) else {
            warnings.push(format!(
                "{} is no Node of the Kubernetes cluster (yet): no pods are scheduled there",
                node.name
            ));
            continue;
        };
        if !api.addresses.is_empty()
            && ![Some(node.address), node.address6].into_iter().flatten().any(|a| api.addresses.contains(&a))
        {
            let theirs: Vec<String> = api.addresses.iter().map(ToString::to_string).collect();
            warnings.push(format!(
                "{}: its Node has the internal address {}, the cluster file {}: kubelet's --node-ip decides which of its \
                 addresses Kubernetes uses",
                node.name,
                theirs.join(", "),
                node.address
            ));
        }
        for range in &api.pod_cidrs {
            let place = cluster.network.pod_cidrs.iter().position(|all| all.contains(range));
            let fits =
                place.and_then(|place| cluster.network.node_prefixes.get(place)) == Some(&range.prefix_len());
            let same_family = |net: &&IpNet| net.addr().is_ipv4() == range.addr().is_ipv4();
            let written = node.pod_cidrs.iter().find(same_family).copied();
            let problem = match written {
                _ if !fits => Some((
                    format!("its Node has the pod range {range}, which is no node's part of network.podCIDR"),
                    "make network.podCIDR and nodePrefix those of kube-controller-manager (--cluster-cidr, \
                     --node-cidr-mask-size)",
                )),
                Some(written) if written != *range => Some((
                    format!("its Node has the pod range {range}, and the cluster file says {written}"),
                    "take podCIDR off the node in homelab.yaml: Kubernetes has given it out already",
                )),
                Some(_) => None,
                None => {
                    node.pod_cidrs.push(*range);
                    None
                }
            };
            if let Some((message, help)) = problem {
                let problem = Problem { message, help: help.to_owned() };
                problems.entry(node.name.clone()).or_default().push(problem);
            }
        }
    }
    let unknown = nodes.iter().filter(|api| !cluster.nodes.iter().any(|node| node.name == api.name));
    let unknown: Vec<&str> = unknown.map(|api| api.name.as_str()).collect();
    let followed = cluster.kubernetes.as_ref().is_some_and(|k| k.nodes == NodesFrom::FromKubernetes);
    if !unknown.is_empty() && !followed {
        warnings.push(format!(
            "the Kubernetes cluster has Nodes that the cluster file does not name, whose pods no node here reaches (`kubernetes.nodes: \
             fromKubernetes` has the agents reach them): {}",
            unknown.join(", ")
        ));
    }
    (merged, problems)
}

/// What an agent is told; None where the file speaks of no Kubernetes.
fn agent_spec(cluster: &Cluster, node: &str, endpoint: &ApiEndpoint) -> Option<KubernetesSpec> {
    let settings = cluster.kubernetes.as_ref()?;
    let servers = if settings.servers.is_empty() { &endpoint.servers } else { &settings.servers };
    Some(KubernetesSpec {
        ca: endpoint.ca.clone(),
        server_name: endpoint.server_name.clone(),
        nodes: settings.nodes,
        service_proxy_name: settings.service_proxy_name.clone(),
        load_balancer_class: settings.load_balancer_class.clone(),
        metrics_port: settings.metrics_port,
        pools: cluster.load_balancer.pools.clone(),
        ..KubernetesSpec::new(servers.clone(), node)
    })
}

/// Objects of the cluster's homelab, unless there are others of the same names.
fn ours_of(
    state: &ApiState,
    cluster: &str,
    desired: &mut Vec<ApiObject>,
) -> Result<Vec<ApiObject>, ApiError> {
    // A namespace that somebody else made is used, and stays theirs.
    let lent = |o: &ApiObject| o.kind == ApiKind::Namespace && !o.is_managed();
    desired.retain(|wanted| !state.objects.iter().any(|o| lent(o) && o.key() == wanted.key()));
    let wanted: BTreeSet<_> = desired.iter().map(Object::key).collect();
    let foreign = state.objects.iter().filter(|o| !o.is_of(cluster) && wanted.contains(&o.key()));
    let foreign: Vec<String> = foreign.map(|o| o.key().to_string()).collect();
    if !foreign.is_empty() {
        return Err(ApiError::Foreign(foreign));
    }
    Ok(state.objects.iter().filter(|o| o.is_of(cluster)).cloned().collect())
}

impl Engine<'_> {
    /// Looks at the API, if there is one.
    ///
    /// Where the file speaks of none, the one that the laptop knows counts only if it is that which the nodes use.
    pub(crate) fn see_kubernetes(&self, cluster: &Cluster, live: &BTreeMap<String, Live>) -> Option<Seen> {
        let api = self.kubernetes?;
        if cluster.kubernetes.is_none() && !is_theirs(&api.endpoint(), live) {
            return None;
        }
        Some(Seen { endpoint: api.endpoint(), state: api.observe() })
    }

    /// Adds to what the nodes shall be what they are told of Kubernetes, and plans the API's part.
    pub(crate) fn plan_kubernetes(
        &self,
        cluster: &Cluster,
        chosen: &[String],
        seen: Option<&Seen>,
        specs: &mut BTreeMap<String, NodeSpec>,
        live: &BTreeMap<String, Live>,
    ) -> (Option<PlannedKubernetes>, BTreeMap<String, NodeObject>) {
        let mut tokens = BTreeMap::new();
        if cluster.kubernetes.is_none() {
            return (self.unplan_kubernetes(cluster, chosen, seen), tokens);
        }
        let kept = |name: &String| live.get(name).and_then(|l| Some(object(held(&l.observed)?.to_owned())));
        let Some(seen) = seen else {
            // A command that has nothing to do with the API: all stays as it is.
            for (name, spec) in specs {
                let told = live.get(name).and_then(|l| l.observed.spec.as_ref());
                spec.kubernetes = told.and_then(|spec| spec.kubernetes.clone());
                tokens.extend(kept(name).map(|token| (name.clone(), token)));
            }
            return (None, tokens);
        };
        for (name, spec) in specs.iter_mut() {
            spec.kubernetes = agent_spec(cluster, name, &seen.endpoint);
        }
        let state = match &seen.state {
            Ok(state) => state,
            Err(error) => {
                // A token can be judged, and had, from the API alone.
                tokens.extend(specs.keys().filter_map(|name| Some((name.clone(), kept(name)?))));
                return (Some(seen.planned(Err(error.clone()))), tokens);
            }
        };
        let accounts =
            state.objects.iter().filter(|o| o.kind == ApiKind::ServiceAccount && o.is_of(&cluster.name));
        let mut uids: BTreeMap<String, String> =
            accounts.filter_map(|o| Some((o.name.clone(), o.uid.clone()?))).collect();
        for name in self.dead_tokens(chosen, &uids, specs, live) {
            uids.remove(&service_account(&name));
        }
        for name in specs.keys() {
            let account = service_account(name);
            let token = uids.get(&account).map_or_else(|| new(&account), |uid| summary(&account, uid));
            tokens.insert(name.clone(), object(token));
        }
        let nodes: Vec<&str> = cluster.nodes.iter().map(|n| n.name.as_str()).collect();
        let mut desired = api_objects(&cluster.name, &nodes, &uids);
        let changes = ours_of(state, &cluster.name, &mut desired).map(|ours| {
            let mut changes = plan_api(&ours, &desired);
            if !chosen.is_empty() {
                // Nodes that left the file keep what they have until a run is about all nodes.
                changes.retain(|c| !matches!(c.change, Change::Delete { .. }));
            }
            changes
        });
        (Some(seen.planned(changes)), tokens)
    }

    /// Nodes whose token has expired, or is to be replaced because the user says so. Their accounts are made anew:
    /// whoever else has an old token is refused then.
    fn dead_tokens(
        &self,
        chosen: &[String],
        uids: &BTreeMap<String, String>,
        specs: &BTreeMap<String, NodeSpec>,
        live: &BTreeMap<String, Live>,
    ) -> Vec<String> {
        let of_account = |name: &str| {
            let account = service_account(name);
            Some(summary(&account, uids.get(&account)?))
        };
        let asked: Vec<_> = specs
            .keys()
            .filter(|name| is_chosen(chosen, name))
            .filter_map(|name| Some((name, live.get(name)?, of_account(name)?)))
            .map(|(name, l, summary)| (name.clone(), l.line.clone(), held(&l.observed) == Some(&summary)))
            .collect();
        let judged = parallel::map(asked, self.options.parallel, |(name, line, holds)| {
            if self.options.new_tokens {
                return Some(name);
            }
            if !holds {
                return None;
            }
            let request = Request::Secret { path: ours::KUBERNETES_TOKEN.to_owned() };
            let Ok(Response::Secret(secret)) = line.get().ask(&request, self.options.answer) else {
                return None;
            };
            let token = Token::parse(&secret.text).ok()?;
            (token.expires < self.options.now.saturating_add(SOON)).then_some(name)
        });
        judged.into_iter().flatten().collect()
    }

    /// The plan of taking away what is in the API of the chosen nodes, and of the whole cluster if they are all.
    pub(crate) fn unplan_kubernetes(
        &self,
        cluster: &Cluster,
        chosen: &[String],
        seen: Option<&Seen>,
    ) -> Option<PlannedKubernetes> {
        let seen = seen?;
        let state = match &seen.state {
            Ok(state) => state,
            Err(error) => return Some(seen.planned(Err(error.clone()))),
        };
        let ours: Vec<ApiObject> = state.objects.iter().filter(|o| o.is_of(&cluster.name)).cloned().collect();
        let stay: Vec<&str> =
            cluster.nodes.iter().map(|n| n.name.as_str()).filter(|n| !is_chosen(chosen, n)).collect();
        let mut desired = Vec::new();
        if !stay.is_empty() {
            let uid = |o: &ApiObject| Some((o.name.clone(), o.uid.clone()?));
            desired = api_objects(&cluster.name, &stay, &ours.iter().filter_map(uid).collect());
            // What is not there is not made by a destroy.
            desired.retain(|wanted| ours.iter().any(|o| o.key() == wanted.key()));
            // What is of other nodes stays as it is.
            desired.extend(ours.iter().filter(|o| stay.iter().any(|n| node_of(o) == Some(*n))).cloned());
            desired.sort_by_key(Object::key);
            desired.dedup_by_key(|o| o.key());
        }
        // What is known of Services goes with the namespace: they come first.
        let free = state.services.iter().filter(|_| stay.is_empty()).filter_map(ApiService::release);
        let mut changes: Vec<ApiChange> = free.map(planned).collect();
        changes.extend(plan_api(&ours, &desired));
        Some(seen.planned(Ok(changes)))
    }

    /// Carries out the API's part of the plan.
    pub(crate) fn apply_kubernetes(&self, planned: &PlannedKubernetes) -> KubernetesOutcome {
        let changes = match &planned.outcome {
            Err(error) => return KubernetesOutcome::Unplanned(error.clone()),
            Ok(changes) if changes.is_empty() => return KubernetesOutcome::Unchanged,
            Ok(changes) => changes,
        };
        let Some(api) = self.kubernetes else { return KubernetesOutcome::NotStarted };
        for (index, change) in changes.iter().enumerate() {
            let result = if self.cancelled() { None } else { Some(api.carry_out(&change.change)) };
            let done = changes[..index].iter().map(|change| change.action).collect();
            match result {
                None if index == 0 => return KubernetesOutcome::NotStarted,
                None => {
                    let error = ApiError::Config("stopped".to_owned());
                    return KubernetesOutcome::Failed { done, error };
                }
                Some(Err(error)) => return KubernetesOutcome::Failed { done, error },
                Some(Ok(())) => {}
            }
        }
        KubernetesOutcome::Changed(changes.iter().map(|change| change.action).collect())
    }

    /// The texts of the tokens that the plan needs: they are issued here; plan and desired state then name them.
    pub(crate) fn tokens(
        &self,
        prepared: &mut Prepared,
        secrets: &mut BTreeMap<String, String>,
    ) -> Result<(), ApplyError> {
        // A plan that leads back has its file on the node.
        let (Some(api), true) = (self.kubernetes, matches!(prepared.aim, Aim::Goal(Goal::Desired))) else {
            return Ok(());
        };
        let Prepared { plan, live, .. } = prepared;
        for node in &mut plan.nodes {
            let Ok(changes) = &mut node.outcome else { continue };
            let wanted = changes.changes.iter().find_map(|c| token_of(c.change.after()?)).map(str::to_owned);
            let Some(wanted) = wanted else { continue };
            let account = service_account(&node.name);
            let token = api.token(&account).map_err(ApplyError::Kubernetes)?;
            let summary = token.summary();
            if wanted != summary && wanted != new(&account) || token.account != account {
                let reason = format!("a token of {summary}");
                return Err(ApplyError::Kubernetes(ApiError::Answer {
                    what: format!("a request for {wanted}"),
                    reason,
                }));
            }
            rename(&mut changes.changes, ours::KUBERNETES_TOKEN, &wanted, &summary);
            for object in live.get_mut(&node.name).into_iter().flat_map(|l| &mut l.desired) {
                rename_object(object, ours::KUBERNETES_TOKEN, &wanted, &summary);
            }
            secrets.insert(summary, token.to_text());
        }
        Ok(())
    }
}
