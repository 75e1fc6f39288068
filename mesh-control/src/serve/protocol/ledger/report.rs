//! What a status report takes from a ledger.

use std::sync::Arc;
use std::time::Instant;

use crate::catalog::Kind;
use crate::serve::protocol::ledger::Nack;

/// One kind of one stream, for status.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) kind: Kind,
    pub(crate) wildcard: bool,
    pub(crate) names: Vec<NameReport>,
    pub(crate) sent_version: String,
    pub(crate) acked_version: String,
    pub(crate) acked_at: Option<Instant>,
    pub(crate) pending_since: Option<Instant>,
    pub(crate) unsent: usize,
    pub(crate) settling: usize,
    pub(crate) nack: Option<Nack>,
    pub(crate) refused: bool,
    pub(crate) pushes: u64,
    pub(crate) nacks: u64,
}

/// One name of one stream, for status.
#[derive(Clone, Debug)]
pub(crate) struct NameReport {
    pub(crate) name: Arc<str>,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) absent: bool,
    pub(crate) pending: bool,
    pub(crate) refused: bool,
}
