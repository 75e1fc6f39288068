//! Envoy's rate limit service: questions about requests, each answered from [`RateLimits`].
//!
//! Whoever reaches the port may ask, as with any service of this protocol; over TLS with a client authority, whoever has a
//! certificate. What cannot be decided is an error, and the caller's failure mode says what becomes of the request.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, async_trait};

use crate::ratelimit::{NotCounted, RateLimits, Refusal};
use crate::serve::io::server::certified;

/// The largest question: a hundred descriptors of what fits into headers.
const MOST_BYTES: usize = 256 << 10;

/// The service.
pub(super) struct RateLimitDesk(Arc<RateLimits>);

type Certified = fn(Request<()>) -> Result<Request<()>, Status>;

impl RateLimitDesk {
    pub(super) fn service(
        limits: Arc<RateLimits>,
    ) -> InterceptedService<RateLimitServiceServer<RateLimitDesk>, Certified> {
        let service = RateLimitServiceServer::new(RateLimitDesk(limits)).max_decoding_message_size(MOST_BYTES);
        InterceptedService::new(service, certified)
    }
}

#[async_trait]
impl RateLimitService for RateLimitDesk {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let since: Duration = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.decide(request.get_ref(), since).await.map(Response::new).map_err(|refusal| {
            let why = refusal.to_string();
            match refusal {
                Refusal::Invalid(_) => Status::invalid_argument(why),
                Refusal::NotCounted(NotCounted::Busy) => Status::resource_exhausted(why),
                Refusal::NoRules | Refusal::NotCounted(_) => Status::unavailable(why),
            }
        })
    }
}
