//! Carries questions to rate limit services by the mesh's own client, so as their services are to be called. To each so many are
//! under way at most; waiting for a turn is waiting for an answer, and there is a time for that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::limits::{Answer, Answering, Question, RateLimitService};
use mesh_core::request_info::Deadline;
use mesh_core::xds::rate_limit::{SHOULD_RATE_LIMIT, decode, encode};

use crate::outbound;
use crate::transport::pooled;
use crate::unary::{self, MeshClient, Turns};

/// Questions to one service that are under way at a time.
const MOST_ASKED: usize = 1000;
/// The longest answer: more is not read.
const MOST_BYTES: usize = 64 << 10;

tokio::task_local! {
    /// Whether a question is under way, in the task that waits for its answer.
    static ASKING: ();
}

/// See the [module](self).
pub(crate) struct RateLimits(Arc<Shared>);

struct Shared {
    client: MeshClient,
    turns: Turns,
}

impl RateLimits {
    /// Calls services so.
    pub(crate) fn new(client: MeshClient) -> RateLimits {
        RateLimits(Arc::new(Shared { client, turns: Turns::new(MOST_ASKED) }))
    }
}

impl RateLimitService for RateLimits {
    fn ask(&self, target: &Arc<str>, question: Question, timeout: Duration) -> Answering {
        let (shared, target) = (Arc::clone(&self.0), Arc::clone(target));
        Box::pin(async move {
            // Asked about its own call, it would ask without end.
            if ASKING.try_with(|()| ()).is_ok() {
                return Err(format!("{target}: a question to a service is asked about"));
            }
            let asked = ASKING.scope((), shared.ask(&target, &question, timeout));
            let answer = tokio::time::timeout(timeout, asked).await;
            answer.unwrap_or_else(|_| Err(format!("{target}: no answer within {timeout:?}")))
        })
    }
}

impl Shared {
    async fn ask(&self, target: &Arc<str>, question: &Question, timeout: Duration) -> Result<Answer, String> {
        let turns = self.turns.of(target);
        let _turn = turns.acquire().await.map_err(|error| error.to_string())?;
        let context = self.client.to(target)?;
        let mut call = unary::call(target, SHOULD_RATE_LIMIT, &encode(question))?;
        if let Some(deadline) = Instant::now().checked_add(timeout) {
            call.extensions_mut().insert(Deadline(deadline));
        }
        let (head, body) = call.into_parts();
        let response = outbound::send(&context, pooled(), head, body).await.map_err(|error| format!("{error:#}"))?;
        decode(&unary::message(response, MOST_BYTES).await?)
    }
}
