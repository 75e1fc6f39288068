//! Filters of the application's own that the configuration asks for by name, as Istio's `WasmPlugin` does.

use std::sync::Arc;

/// A filter that the application has registered under a name, and what becomes of requests where it cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plugin {
    /// The name.
    pub name: Arc<str>,
    /// Its configuration, as canonical JSON.
    pub config: Arc<str>,
    /// What becomes of requests where there is no filter of this name, where it does not take its configuration, or where it
    /// panics.
    pub on_failure: OnFailure,
}

/// What becomes of requests whose filter cannot run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are answered with 500.
    #[default]
    Refuse,
    /// They pass without it.
    Pass,
    /// They are answered with 500; a filter that panicked is made anew, once a second at most.
    Restart,
}

impl Plugin {
    /// A filter of this name with this configuration, without which there is no passing.
    pub fn new(name: impl Into<Arc<str>>, config: impl Into<Arc<str>>) -> Self {
        Plugin { name: name.into(), config: config.into(), on_failure: OnFailure::Refuse }
    }
}
