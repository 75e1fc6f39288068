//! Where a request goes on to that came to a gateway.

use std::sync::Arc;

use mesh_core::model::{MetricRules, Tracing};
use mesh_core::request_info::Upstream;
use mesh_core::store::TargetEntry;

/// An extension of the request, which nobody else can make.
#[derive(Clone, Debug)]
pub(crate) struct Onward {
    pub(crate) entry: Arc<TargetEntry>,
    /// Where a log has a line for the request as it came.
    pub(crate) upstream: Option<Upstream>,
    /// How it is counted, as the listener says by which it came.
    pub(crate) metrics: Option<Arc<MetricRules>>,
    /// How it is traced, as that says, too.
    pub(crate) tracing: Option<Arc<Tracing>>,
}
