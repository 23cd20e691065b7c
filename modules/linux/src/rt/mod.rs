//! rtnetlink: links, addresses, neighbours, forwarding entries, routes.

mod address;
mod link;
mod neighbour;
mod qdisc;
mod route;

pub(crate) use address::{
    add_address, add_message as add_address_message, addresses, addresses_elsewhere, addresses_with_state,
    delete_address,
};
pub(crate) use link::{
    LinkChange, NewKind, NewLink, create_link, delete_link, finish_link, link_by_name, links,
    no_forward_delay, port_message, set_alias, set_link, set_message, take_pod_back, veth_message,
};
pub use link::{LinkInfo, VethEnd, VxlanInfo, mac_text, parse_mac};
pub(crate) use neighbour::{
    NeighbourInfo, add_fdb, add_neighbour, delete_fdb, delete_neighbour, delete_neighbour_message, fdb,
    neighbours,
};
pub use qdisc::Bucket;
pub(crate) use qdisc::{bucket_rate, set_bucket};
pub(crate) use route::{
    NewRoute, RouteFilter, RouteInfo, add_message as add_route_message, add_route, delete_route, routes,
};
