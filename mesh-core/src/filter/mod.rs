//! HTTP filters: what may look at a request before it is balanced, change it, answer it, or hold it back, and what may
//! look at the response on its way home.
//!
//! A filter decides and does not act: it returns a [`Decision`], and the data plane waits or replies. The
//! application's own filters are registered by name and configured over xDS (as a `TypedStruct`) or in code; this folder
//! has a file for each built-in one.

mod adaptive_concurrency;
mod admission_control;
mod cors;
mod counted;
mod ext_proc;
mod fault;
mod local_rate_limit;
mod plugin;
mod quota;
mod rate_limit;
mod request_rules;
mod session;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, request, response};

use crate::error::{Invalid, OVERLOADED};
use crate::limits::{Quotas, RateLimitService};
use crate::model::{FilterConfig, Plugin};
use crate::request_info::RequestInfo;
use crate::response_flags::ResponseFlags;
use crate::state::{FilterState, States};

pub use adaptive_concurrency::AdaptiveConcurrencyFilter;
pub use admission_control::AdmissionControlFilter;
pub use cors::CorsFilter;
pub use ext_proc::{Exchange, ExtProcFilter, Processed, Processing, ProcessorService, Said, ShownHead};
pub use fault::{ActiveFaults, FaultFilter};
pub use local_rate_limit::{LocalLimit, LocalRateLimitFilter};
pub use plugin::PluginFilter;
pub use quota::{Quota, QuotaFilter};
pub use rate_limit::{GlobalLimit, GlobalRateLimitFilter};
pub use request_rules::RequestRulesFilter;
pub use session::SessionFilter;

/// What becomes of a request after a filter saw it. Exhaustive: one more must not pass for [`Decision::Continue`].
pub enum Decision {
    /// It goes on.
    Continue,
    /// It is answered here.
    Reply(Reply),
    /// It is held back for this long, then goes on, or is answered where there is a reply.
    Delay(Duration, Option<Reply>),
    /// It waits for somebody else's word, which decides. Nothing but the request itself waits with it.
    Callout(Callout),
}

/// What a filter waits for. Dropped unfinished if the caller gives the request up or its
/// [`Deadline`](crate::request_info::Deadline) passes. The route's own timeout does not run yet, as in Envoy: bring one of
/// your own.
pub type Callout = Pin<Box<dyn Future<Output = Resume> + Send>>;

/// What a filter does with the request once it knows more.
pub type Resume = Box<dyn FnOnce(&mut RequestInfo, &mut request::Parts) -> Decision + Send>;

/// What a filter waits for with the head of a response in hand. Dropped unfinished if the caller gives the request up: bring a
/// time limit.
pub type ResponseCallout = Pin<Box<dyn Future<Output = ResponseResume> + Send>>;

/// What a filter does with the response once it knows more: it passes, or this is the answer in its place.
pub type ResponseResume = Box<dyn FnOnce(&mut RequestInfo, &mut response::Parts) -> Option<Reply> + Send>;

/// An answer of the mesh itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The HTTP status. A caller that speaks gRPC gets 200 and a gRPC status instead.
    pub status: StatusCode,
    /// The gRPC code, where the filter was told one; else it follows from the HTTP status.
    pub grpc_code: Option<u32>,
    /// The body for HTTP callers, the message for gRPC callers.
    pub body: Bytes,
    /// Headers besides those that say what the body is.
    pub headers: Option<Box<HeaderMap>>,
}

impl Reply {
    /// An answer with this status and text; the gRPC code follows from the status.
    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Reply { status, grpc_code: None, body: body.into(), headers: None }
    }

    /// The answer to a request for which there is too much to do, by Envoy's signs: no failure of the server, and not to be
    /// tried again.
    #[cold]
    fn overloaded(request: &mut RequestInfo, status: StatusCode, body: &'static str, details: &'static str) -> Self {
        request.note_flags(ResponseFlags::OVERLOAD_MANAGER);
        request.note_details(details);
        let headers = HeaderMap::from_iter([(OVERLOADED, HeaderValue::from_static("true"))]);
        Reply { headers: Some(Box::new(headers)), ..Reply::new(status, body) }
    }

    /// The same with a gRPC code of its own.
    pub fn grpc_code(mut self, code: u32) -> Self {
        self.grpc_code = Some(code);
        self
    }
}

/// Something that requests pass on their way to the balancer, or on a server to the application.
///
/// ```
/// use http::{StatusCode, request, response};
/// use mesh_core::filter::{Decision, Filter, Reply};
/// use mesh_core::request_info::RequestInfo;
///
/// /// Lets nobody in without a key, and says so.
/// #[derive(Debug)]
/// struct NeedsKey;
///
/// impl Filter for NeedsKey {
///     fn on_request(&self, _: &mut RequestInfo, head: &mut request::Parts) -> Decision {
///         match head.headers.contains_key("x-key") {
///             true => Decision::Continue,
///             false => Decision::Reply(Reply::new(StatusCode::UNAUTHORIZED, "a key is needed")),
///         }
///     }
///
///     fn on_response(&self, _: &mut RequestInfo, head: &mut response::Parts) {
///         head.headers.insert("x-checked", "1".parse().expect("a header's value"));
///     }
/// }
/// ```
pub trait Filter: Send + Sync + fmt::Debug {
    /// Looks at a request, and may change its head. Must not block.
    fn on_request(&self, request: &mut RequestInfo, head: &mut request::Parts) -> Decision;

    /// Looks at the head of the response, be it the server's or an answer of the mesh, and may change it. Filters see
    /// it in reverse order, and only those that saw the request. On a client, a request that the mesh fails has no
    /// response. Must not block.
    fn on_response(&self, request: &mut RequestInfo, head: &mut response::Parts) {
        _ = (request, head);
    }

    /// Holds the head of the application's answer back, to wait for somebody else's word on it. On a server, for filters that say so
    /// ([`holds_responses`](Self::holds_responses)), before any of them sees the response. Must not block.
    fn hold_response(&self, request: &mut RequestInfo, head: &response::Parts) -> Option<ResponseCallout> {
        _ = (request, head);
        None
    }

    /// Whether it may hold responses back.
    fn holds_responses(&self) -> bool {
        false
    }

    /// The request is over, however it ended, and `request` has all that was noted of it. Told those that saw the
    /// request. Must not block.
    fn on_end(&self, request: &RequestInfo) {
        _ = request;
    }

    /// What it is called where somebody is told that it answered a request; empty where it has no name.
    fn name(&self) -> &str {
        ""
    }

    /// Whether it asks a request for what is noted of it, such as its authority, its endpoint or its status. Where no filter of
    /// a route does, and nobody else wants to know, these methods of [`RequestInfo`] say nothing, and noting costs nothing.
    fn reads_notes(&self) -> bool {
        true
    }
}

/// Makes a filter from its configuration (canonical JSON). What is to survive the next push is kept in the
/// [`FilterState`].
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use http::request;
/// use mesh_core::filter::{Decision, Filter, FilterFactory};
/// use mesh_core::request_info::RequestInfo;
///
/// #[derive(Debug)]
/// struct Count(Arc<AtomicU64>);
///
/// impl Filter for Count {
///     fn on_request(&self, _: &mut RequestInfo, _: &mut request::Parts) -> Decision {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         Decision::Continue
///     }
/// }
///
/// let factory: FilterFactory = Arc::new(|_, state| Ok(Arc::new(Count(state.get(AtomicU64::default)))));
/// ```
pub type FilterFactory = Arc<dyn Fn(&str, &FilterState<'_>) -> Result<Arc<dyn Filter>, Invalid> + Send + Sync>;

/// The application's own filters by name. The builder fills it; it does not change after.
#[derive(Clone, Default)]
pub struct FilterRegistry {
    factories: HashMap<Arc<str>, FilterFactory>,
    /// What their configurations may be, as JSON Schema.
    schemas: BTreeMap<Arc<str>, serde_json::Value>,
    rate_limits: Option<Arc<dyn RateLimitService>>,
    processors: Option<Arc<dyn ProcessorService>>,
    quotas: Arc<Quotas>,
}

impl FilterRegistry {
    /// Adds a filter under a name; a second one of the same name replaces the first.
    pub fn register(&mut self, name: impl Into<Arc<str>>, factory: FilterFactory) {
        self.factories.insert(name.into(), factory);
    }

    /// Says by a JSON Schema what the configuration of a filter may be, for whoever checks it before it is in force.
    pub fn describe(&mut self, name: impl Into<Arc<str>>, schema: serde_json::Value) {
        self.schemas.insert(name.into(), schema);
    }

    /// What the configurations of filters may be, by the filters' names.
    pub fn schemas(&self) -> &BTreeMap<Arc<str>, serde_json::Value> {
        &self.schemas
    }

    /// Whether a filter can be made. What is made for it, its state too, is dropped.
    ///
    /// # Errors
    /// There is none of this name, or it does not take its configuration.
    pub fn try_out(&self, plugin: &Plugin) -> Result<(), Invalid> {
        let states = States::default();
        plugin::made(plugin, self.factories.get(&plugin.name), &states.filter("", &plugin.name)).map(drop)
    }

    /// Has questions to rate limit services carried by this.
    pub fn ask_rate_limits_by(&mut self, service: Arc<dyn RateLimitService>) {
        self.rate_limits = Some(service);
    }

    /// Has heads carried to external processors by this.
    pub fn process_by(&mut self, service: Arc<dyn ProcessorService>) {
        self.processors = Some(service);
    }

    /// Who carries questions to rate limit services, if somebody does.
    pub(crate) fn rate_limits(&self) -> Option<Arc<dyn RateLimitService>> {
        self.rate_limits.clone()
    }

    /// The buckets of quotas, and what is to be reported of them.
    pub fn quotas(&self) -> &Arc<Quotas> {
        &self.quotas
    }

    /// The name as it was registered, if it was.
    pub fn registered(&self, name: &str) -> Option<&Arc<str>> {
        self.factories.get_key_value(name).map(|(name, _)| name)
    }

    /// The filter of a configuration; `None` where it is turned off.
    pub fn build(&self, config: &FilterConfig, state: &FilterState<'_>) -> Result<Option<Arc<dyn Filter>>, Invalid> {
        match config {
            FilterConfig::Disabled => Ok(None),
            // It is no filter of a chain: `RouteTable::admit` asks it before there is a route.
            FilterConfig::Rbac(_) | FilterConfig::Jwt(_) | FilterConfig::ExtAuthz(_) => {
                Err(Invalid::new("RBAC, JWT and ext_authz are for servers"))
            }
            FilterConfig::Fault(fault) => {
                Ok(Some(Arc::new(FaultFilter::new(fault)?.counted(state.get(ActiveFaults::default)))))
            }
            FilterConfig::ExtProc(config) => Ok(Some(Arc::new(ExtProcFilter::new(config, self.processors.clone())))),
            // What it goes by is the route's: `RouteTable::compile` makes it.
            FilterConfig::LocalRateLimit(_)
            | FilterConfig::RateLimit(_)
            | FilterConfig::RateLimitPerRoute(_)
            | FilterConfig::RateLimitQuota(_)
            | FilterConfig::QuotaPerRoute(_) => Err(Invalid::new("a rate limit is made for each route")),
            // What is kept goes on: nobody else asks what time it is.
            FilterConfig::AdaptiveConcurrency(config) => {
                Ok(Some(Arc::new(AdaptiveConcurrencyFilter::new(config, state, Instant::now())?)))
            }
            FilterConfig::AdmissionControl(config) => Ok(Some(Arc::new(AdmissionControlFilter::new(config, state)))),
            FilterConfig::Cors(policy) => Ok(Some(Arc::new(CorsFilter::new(policy)))),
            FilterConfig::StatefulSession(session) => Ok(Some(Arc::new(SessionFilter::new(session)))),
            FilterConfig::RequestRules(rules) => Ok(Some(Arc::new(RequestRulesFilter::new(rules)))),
            FilterConfig::Plugin(plugin) => {
                let filter = PluginFilter::new(plugin, self.factories.get(&plugin.name).cloned(), state);
                Ok((!filter.is_idle()).then(|| Arc::new(filter) as Arc<dyn Filter>))
            }
            FilterConfig::Custom(name, json) => match self.factories.get(name) {
                Some(factory) => factory(json, state).map(Some),
                None => Err(Invalid::new(format!("no filter is registered as {name:?}"))),
            },
        }
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Continue => f.write_str("Continue"),
            Decision::Reply(reply) => f.debug_tuple("Reply").field(reply).finish(),
            Decision::Delay(delay, reply) => f.debug_tuple("Delay").field(delay).field(reply).finish(),
            Decision::Callout(_) => f.write_str("Callout"),
        }
    }
}

impl fmt::Debug for FilterRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.factories.keys()).finish()
    }
}
