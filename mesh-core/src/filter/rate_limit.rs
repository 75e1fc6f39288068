//! Global rate limits (`envoy.extensions.filters.http.ratelimit.v3`): a service is asked whether there is room for a request,
//! which waits for its answer, and no longer than that may take.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, response};

use super::counted::{self, RouteLimits};
use super::request_rules::Known;
use super::{Decision, Filter, Reply, Resume};
use crate::error::Invalid;
use crate::limits::{Answer, DescriptorMaker, Question, RATE_LIMITED, RateLimitService};
use crate::model::{Fraction, GlobalRateLimit, RateLimitPerRoute, RestHeaders};
use crate::request_info::{LimitNote, RequestInfo};
use crate::response_flags::ResponseFlags;
use crate::rewrite::apply_to_response;
use crate::state::{FilterState, LimitCounts};

/// A limit as a listener has it: its routes share it.
#[derive(Clone)]
pub struct GlobalLimit {
    config: Arc<GlobalRateLimit>,
    /// Who carries questions; nobody where the data plane cannot.
    service: Option<Arc<dyn RateLimitService>>,
    counts: Arc<LimitCounts>,
    /// Of requests that there was no answer about: let through, and refused.
    failures: Arc<LimitCounts>,
}

impl GlobalLimit {
    /// The limit of a configuration.
    pub fn new(
        config: &Arc<GlobalRateLimit>,
        service: Option<Arc<dyn RateLimitService>>,
        state: &FilterState<'_>,
    ) -> Self {
        let counts = |rule: &str| state.limited().counts(&config.name, rule);
        GlobalLimit { config: Arc::clone(config), service, counts: counts("service"), failures: counts("no answer") }
    }

    /// The filter of a route, with what it says in the place of the listener's; `None` where its requests are counted by nothing.
    pub fn filter(
        &self,
        here: Option<&RateLimitPerRoute>,
        limits: RouteLimits<'_>,
    ) -> Result<Option<GlobalRateLimitFilter>, Invalid> {
        let GlobalRateLimit { stage, of_host, rate_limits: own, domain, .. } = &*self.config;
        let own = here.map(|here| &here.rate_limits).filter(|own| !own.is_empty()).unwrap_or(own);
        let limits = counted::by(own, *stage, here.map_or(*of_host, |here| here.of_host), limits);
        let makers: Box<[DescriptorMaker]> = limits.iter().map(DescriptorMaker::new).collect::<Result<_, _>>()?;
        let domain = here.and_then(|here| here.domain.as_ref()).unwrap_or(domain);
        let filter = GlobalRateLimitFilter { limit: self.clone(), domain: Arc::clone(domain), makers };
        Ok((!filter.makers.is_empty() && self.config.enabled != Fraction::default()).then_some(filter))
    }

    /// What becomes of a request, by the answer about it.
    fn decide(
        &self,
        answer: Result<Answer, String>,
        is_enforced: bool,
        request: &mut RequestInfo,
        head: &mut Parts,
    ) -> Decision {
        let config = &self.config;
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) if config.fails_closed => {
                self.failures.note_over();
                if self.failures.is_told(request.started) {
                    let refused = self.failures.over();
                    tracing::warn!(
                        limit = &*config.name,
                        why,
                        refused,
                        "the rate limit service gave no answer, and the request is refused"
                    );
                }
                request.note_flags(ResponseFlags::RATE_LIMIT_SERVICE_ERROR);
                request.note_details("rate_limiter_error");
                return Decision::Reply(Reply::new(config.status_on_error, Bytes::new()));
            }
            Err(why) => {
                self.failures.note_within();
                if self.failures.is_told(request.started) {
                    let passed = self.failures.within();
                    tracing::warn!(
                        limit = &*config.name,
                        why,
                        passed,
                        "the rate limit service gave no answer, and the request passes"
                    );
                }
                request.note_event("rate limit", || serde_json::json!({"limit": &*config.name, "no answer": why}));
                return Decision::Continue;
            }
        };
        if let Some(left) = answer.left.as_ref().filter(|_| config.tells != RestHeaders::None) {
            let (max, window, full_in) = (left.max, left.window, left.full_in);
            counted::note(request, LimitNote { rule: Arc::clone(&left.name), max, left: left.left, window, full_in });
        }
        request.note_event("rate limit", || {
            serde_json::json!({
                "limit": &*config.name, "left": answer.left.as_ref().map(|left| left.left), "is_within": !answer.is_over,
                "is_enforced": is_enforced,
            })
        });
        match (answer.is_over, is_enforced) {
            (true, true) => self.refuse(answer, request),
            (true, false) => {
                self.counts.note_shadow();
                Decision::Continue
            }
            (false, _) => {
                self.counts.note_within();
                head.headers.extend(answer.request_headers);
                if !answer.response_headers.is_empty() {
                    request.limit_headers.get_or_insert_default().extend(answer.response_headers);
                }
                Decision::Continue
            }
        }
    }

    #[cold]
    fn refuse(&self, answer: Answer, request: &mut RequestInfo) -> Decision {
        let config = &self.config;
        self.counts.note_over();
        counted::note_refused(request);
        let mut reply = Reply::new(config.status, answer.body).grpc_code(counted::grpc_code(config.is_exhaustion));
        let mut headers: HeaderMap = answer.response_headers;
        if config.tells_why {
            headers.insert(RATE_LIMITED, HeaderValue::from_static("true"));
        }
        if let Some(left) = answer.left.filter(|_| config.tells_when) {
            counted::tell_when(&mut headers, left.full_in);
        }
        reply.headers = Some(Box::new(headers));
        Decision::Reply(reply)
    }
}

impl std::fmt::Debug for GlobalLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GlobalLimit").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Asks about the requests of one route.
#[derive(Debug)]
pub struct GlobalRateLimitFilter {
    limit: GlobalLimit,
    domain: Arc<str>,
    makers: Box<[DescriptorMaker]>,
}

impl Filter for GlobalRateLimitFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        let config = &self.limit.config;
        if !counted::is_hit(config.enabled, request) {
            return Decision::Continue;
        }
        let is_enforced = counted::is_hit(config.enforced, request);
        let known = Known::now(request, head);
        let seen = counted::seen(request, head, &known);
        let question = Question::new(&self.domain, self.makers.iter().filter_map(|maker| maker.describe(&seen)));
        if question.descriptors.is_empty() {
            return Decision::Continue;
        }
        let Some(service) = &self.limit.service else {
            let why = Err("this process calls no rate limit service".to_owned());
            return self.limit.decide(why, is_enforced, request, head);
        };
        let (asked, limit) = (service.ask(&config.target, question, config.timeout), self.limit.clone());
        Decision::Callout(Box::pin(async move {
            let answer = asked.await;
            Box::new(move |request: &mut RequestInfo, head: &mut Parts| {
                limit.decide(answer, is_enforced, request, head)
            }) as Resume
        }))
    }

    fn on_response(&self, request: &mut RequestInfo, head: &mut response::Parts) {
        let config = &self.limit.config;
        if request.response_flags().contains(ResponseFlags::RATE_LIMITED) && !config.response_changes.is_empty() {
            apply_to_response(std::slice::from_ref(&config.response_changes), head);
        }
        if let Some(headers) = request.limit_headers.take() {
            head.headers.extend(*headers);
        }
        if let Some(note) = &request.limit_note {
            counted::tell(note, config.tells, &mut head.headers);
        }
    }
}
