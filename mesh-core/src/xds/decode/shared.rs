//! What thousands of messages of one resource say alike: it is decoded once, and they share what it came to.

use std::collections::HashSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;

use super::notes::Notes;
use super::route::cluster_name;
use crate::error::Invalid;
use crate::id::ClusterName;
use crate::model::RetryPolicy;

/// What is known of a resource that is being decoded.
#[derive(Default)]
pub(super) struct Shared {
    clusters: HashSet<ClusterName, foldhash::fast::RandomState>,
    /// The last one.
    retry: Option<(pb::RetryPolicy, Arc<RetryPolicy>)>,
}

impl Notes<'_> {
    /// The name of a cluster, in canonical form: many routes lead to few.
    pub(super) fn cluster(&mut self, name: &str) -> Result<ClusterName, Invalid> {
        // A canonical name is its own canonical form.
        if let Some(known) = self.shared.clusters.get(name) {
            return Ok(known.clone());
        }
        let name = cluster_name(name)?;
        self.shared.clusters.insert(name.clone());
        Ok(name)
    }

    /// A policy of retries: mostly it is that of the route before.
    pub(super) fn retry(
        &mut self,
        value: pb::RetryPolicy,
        decode: impl FnOnce(&mut Self, pb::RetryPolicy) -> Result<RetryPolicy, Invalid>,
    ) -> Result<Arc<RetryPolicy>, Invalid> {
        if let Some((last, known)) = &self.shared.retry
            && *last == value
        {
            return Ok(Arc::clone(known));
        }
        let noted = self.count();
        let policy = Arc::new(decode(self, value.clone())?);
        // What has no effect is told of every route that says it.
        if self.count() == noted {
            self.shared.retry = Some((value, Arc::clone(&policy)));
        }
        Ok(policy)
    }
}
