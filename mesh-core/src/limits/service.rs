//! Questions to a rate limit service, and its answers. Who carries them is for the data plane ([`RateLimitService`]).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::limits::Descriptor;
use crate::model::LimitOverride;

/// Whether there is room for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question {
    /// The domain.
    pub domain: Arc<str>,
    /// What the request is counted by.
    pub descriptors: Vec<AskedDescriptor>,
}

/// A descriptor on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AskedDescriptor {
    /// Keys and values.
    pub entries: Vec<(String, String)>,
    /// How many hits the request is, if not one.
    pub hits: Option<u64>,
    /// Whether they are given back.
    pub gives_back: bool,
    /// The limit that its route says.
    pub limit: Option<LimitOverride>,
}

impl Question {
    /// About a domain and descriptors.
    pub fn new<'r>(domain: &Arc<str>, descriptors: impl Iterator<Item = Descriptor<'r>>) -> Self {
        let descriptors = descriptors.map(|descriptor| AskedDescriptor {
            entries: descriptor
                .entries
                .iter()
                .map(|entry| (entry.key.to_owned(), entry.value.to_text().into_owned()))
                .collect(),
            hits: descriptor.hits,
            gives_back: descriptor.gives_back,
            limit: descriptor.limit,
        });
        Question { domain: Arc::clone(domain), descriptors: descriptors.collect() }
    }
}

/// What a rate limit service says of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Whether there is no room.
    pub is_over: bool,
    /// What is left under the limit that it comes nearest to.
    pub left: Option<Left>,
    /// Headers for the answer.
    pub response_headers: HeaderMap,
    /// Headers for the request, where it passes.
    pub request_headers: HeaderMap,
    /// The body for the refused.
    pub body: Bytes,
}

/// What is left under a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name, empty where it has none.
    pub name: Arc<str>,
    /// How many requests there may be in a window.
    pub max: u32,
    /// How many of them are left.
    pub left: u32,
    /// The window.
    pub window: Duration,
    /// When the next one begins.
    pub full_in: Duration,
}

/// An answer, or why there is none, in its time.
pub type Answering = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>>;

/// Carries questions to rate limit services.
pub trait RateLimitService: Send + Sync {
    /// Asks the service at `target` (`host:port`), which has this long: then there is no answer.
    fn ask(&self, target: &Arc<str>, question: Question, timeout: Duration) -> Answering;
}
