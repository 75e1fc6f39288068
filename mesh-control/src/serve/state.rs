//! What all streams share, and what status reports are made from.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::serve::admission::Admission;
use crate::serve::feed::Feed;
use crate::serve::fleet::Fleet;
use crate::serve::load::Load;
use crate::serve::metrics::Metrics;
use crate::serve::presence::Presence;
use crate::serve::push::Pace;
use crate::serve::settling::Settling;

/// See the [module](self).
pub(crate) struct ServerState {
    pub(crate) started: SystemTime,
    pub(crate) feed: Feed,
    pub(crate) presence: Presence,
    pub(crate) fleet: Fleet,
    pub(crate) metrics: Metrics,
    pub(crate) load: Load,
    pub(crate) admission: Mutex<Admission>,
    pub(crate) pace: Pace,
    pub(crate) settling: Settling,
    pub(crate) max_stream_age: Option<Duration>,
    /// Turns true when streams are to end.
    pub(crate) stop: watch::Receiver<bool>,
}
