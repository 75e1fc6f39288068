//! What all streams share, and what status reports are made from.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::calls::Calls;
use crate::serve::clients::admission::Admission;
use crate::serve::clients::certificates::Desk;
use crate::serve::clients::feed::Feed;
use crate::serve::clients::fleet::Fleet;
use crate::serve::clients::load::Load;
use crate::serve::clients::metrics::Metrics;
use crate::serve::clients::presence::Presence;
use crate::serve::clients::refusals::Refusals;
use crate::serve::clients::settling::Settling;
use crate::serve::protocol::push::Pace;

/// See the [module](self).
pub(crate) struct ServerState {
    /// Where certificates are had, if they are.
    pub(crate) desk: Option<Arc<Desk>>,
    /// The records of calls, if they are kept.
    pub(crate) calls: Option<Arc<Calls>>,
    pub(crate) started: SystemTime,
    pub(crate) feed: Feed,
    pub(crate) presence: Presence,
    pub(crate) fleet: Fleet,
    pub(crate) metrics: Metrics,
    pub(crate) load: Load,
    pub(crate) refusals: Refusals,
    pub(crate) admission: Mutex<Admission>,
    pub(crate) pace: Pace,
    pub(crate) settling: Settling,
    pub(crate) max_stream_age: Option<Duration>,
    /// Turns true when streams are to end.
    pub(crate) stop: watch::Receiver<bool>,
}
