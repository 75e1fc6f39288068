//! One target's configuration, compiled: what a request finds its way by.
//!
//! A view is made as a whole and never changes (gRFC A74). What an update did not touch is shared with the view
//! before it: the compiled routes, and every cluster whose cluster and endpoints are the same. The three nouns have a
//! file each: the [`RouteTable`], the [`ClusterView`], and the [`TargetView`] that joins them.

mod cluster;
mod explain;
mod route_filters;
mod routes;
mod status;
mod target;

use std::collections::HashMap;
use std::sync::Arc;

use crate::balance::LoadBalancer;
use crate::filter::FilterRegistry;

pub use cluster::{ClusterView, Leaf, Pick};
pub use explain::{
    ClusterChoice, Explanation, HostChoice, Passed, PassedOver, RouteChoice, ServerChoice, plain_weights,
};
pub use routes::{Admission, Destination, Found, RoutePosition, RouteTable};
pub use status::EndpointStatus;
pub use target::{RouteRef, SelectedRoute, TargetView};

/// What the application adds to the built-in parts, by name.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Extensions {
    /// HTTP filters.
    pub filters: FilterRegistry,
    /// Balancing policies.
    pub balancers: HashMap<Arc<str>, Arc<dyn LoadBalancer>>,
}
