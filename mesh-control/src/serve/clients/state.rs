//! What all streams share, and what status reports are made from.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::calls::Calls;
use crate::quota::Quotas;
use crate::ratelimit::RateLimits;
use crate::serve::clients::admission::Admission;
use crate::serve::clients::authority::told_of;
use crate::serve::clients::certificates::Desk;
use crate::serve::clients::feed::Feed;
use crate::serve::clients::fleet::Fleet;
use crate::serve::clients::following::Following;
use crate::serve::clients::load::Load;
use crate::serve::clients::metrics::Metrics;
use crate::serve::clients::presence::Presence;
use crate::serve::clients::refusals::Refusals;
use crate::serve::clients::settling::Settling;
use crate::serve::clients::traffic::Traffic;
use crate::serve::protocol::ledger::Interner;
use crate::serve::protocol::push::Pace;

/// See the [module](self).
pub(crate) struct ServerState {
    /// Where certificates are had, if they are.
    pub(crate) desk: Option<Arc<Desk>>,
    /// The records of calls, if they are kept.
    pub(crate) calls: Option<Arc<Calls>>,
    /// The rate limit service, if there is one.
    pub(crate) rate_limits: Option<Arc<RateLimits>>,
    /// The quotas, if there are any.
    pub(crate) quotas: Option<Arc<Quotas>>,
    pub(crate) started: SystemTime,
    pub(crate) feed: Feed,
    pub(crate) presence: Presence,
    pub(crate) fleet: Fleet,
    pub(crate) interner: Arc<Interner>,
    /// Which live requests are followed.
    pub(crate) following: Arc<Following>,
    pub(crate) metrics: Metrics,
    pub(crate) load: Load,
    pub(crate) traffic: Traffic,
    pub(crate) refusals: Refusals,
    pub(crate) admission: Mutex<Admission>,
    pub(crate) pace: Pace,
    pub(crate) settling: Settling,
    pub(crate) max_stream_age: Option<Duration>,
    /// Changes when others are revoked, or trusted: streams end, and those who may come back learn of it.
    pub(crate) revoked: watch::Sender<()>,
    /// Turns true when streams are to end.
    pub(crate) stop: watch::Receiver<bool>,
}

/// How often it is looked for revoked certificates and for roots of foreign domains.
const LOOK: Duration = Duration::from_secs(5);

impl ServerState {
    /// Fetches the bundles of foreign trust domains, for as long as it is polled.
    pub(crate) async fn fetch_bundles(&self) {
        if let Some(desk) = &self.desk {
            desk.authority().fetch_bundles().await;
        }
    }

    /// Follows whose certificates are revoked, and who else is trusted, for as long as it is polled.
    pub(crate) async fn follow_revoked(&self) {
        let Some(authority) = self.desk.as_ref().map(|desk| desk.authority().clone()) else { return };
        let (mut is_first, mut untold) = (true, None);
        loop {
            let looking = authority.clone();
            let looked = tokio::task::spawn_blocking(move || looking.look_for_trust(SystemTime::now())).await;
            let is_news = looked.is_ok_and(|is_news| is_news);
            if is_news {
                self.revoked.send_replace(());
            }
            if is_news || std::mem::take(&mut is_first) {
                let now = told_of(&authority);
                if let Some(why) = now.as_ref().filter(|_| now != untold) {
                    tracing::warn!("{why}");
                }
                untold = now;
            }
            _ = tokio::time::timeout(LOOK, authority.fetched_bundles()).await;
        }
    }
}
