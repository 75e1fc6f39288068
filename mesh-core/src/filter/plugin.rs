//! Filters of the application's own that the configuration asks for by name (Istio's `WasmPlugin`): what becomes of requests
//! where there is no such filter in the process, where it does not take its configuration, or where it panics. One that does not
//! take a change of its configuration goes on as it was.
//!
//! The configuration says it (`failStrategy`). A filter that is missing must not be a hole, so that refusing is what is done
//! where nothing is said; what keeps it from running is told with the resource that asks for it (`xds/decode/plugin.rs`).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::{StatusCode, request, response};

use super::{Callout, Decision, Filter, FilterFactory, Reply, Resume};
use crate::error::Invalid;
use crate::model::{OnFailure, Plugin};
use crate::request_info::RequestInfo;
use crate::state::{FilterState, States};

/// A filter that panics on every request is not made anew for each of them.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(1);

/// Kept by a request that is refused, whose answer passes no filter.
struct Refused;

/// A filter that is watched over.
#[derive(Debug)]
pub struct PluginFilter(Arc<Watched>);

struct Watched {
    plugin: Arc<Plugin>,
    factory: Option<FilterFactory>,
    /// The filter, where it runs.
    running: ArcSwapOption<Arc<dyn Filter>>,
    restarted: Mutex<Option<Instant>>,
    /// Whether it was said already that it does not run.
    is_told: AtomicBool,
    kept: Arc<Kept>,
}

/// What is kept of a filter over changes of its configuration: the last one that could be made, by its name.
#[derive(Default)]
struct Kept(Mutex<Option<Named>>);

/// A filter and its name.
type Named = (Arc<str>, Arc<dyn Filter>);

impl PluginFilter {
    /// The filter that a factory makes, if there is one; where it does not take the configuration, the one before goes on.
    pub fn new(plugin: &Arc<Plugin>, factory: Option<FilterFactory>, state: &FilterState<'_>) -> PluginFilter {
        let kept: Arc<Kept> = state.get(Kept::default);
        let running = match made(plugin, factory.as_ref(), state) {
            Ok(made) => {
                *kept.filter() = Some((Arc::clone(&plugin.name), Arc::clone(&made)));
                Some(made)
            }
            Err(why) => {
                let before = kept.filter().clone().filter(|(name, _)| *name == plugin.name);
                let (filter, on_failure, goes_on) = (&*plugin.name, plugin.on_failure, before.is_some());
                tracing::warn!(filter, %why, ?on_failure, goes_on, "a filter cannot be made as the configuration has it");
                before.map(|(_, filter)| filter)
            }
        };
        PluginFilter(Arc::new(Watched {
            plugin: Arc::clone(plugin),
            factory,
            running: ArcSwapOption::new(running.map(Arc::new)),
            restarted: Mutex::default(),
            is_told: AtomicBool::new(false),
            kept,
        }))
    }

    /// Whether requests pass, since it does not run and is not insisted on.
    pub fn is_idle(&self) -> bool {
        self.0.plugin.on_failure == OnFailure::Pass && self.0.running.load().is_none()
    }
}

impl Kept {
    fn filter(&self) -> MutexGuard<'_, Option<Named>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The filter that a factory makes.
///
/// # Errors
/// There is none of this name, or it does not take its configuration.
pub(super) fn made(
    plugin: &Plugin,
    factory: Option<&FilterFactory>,
    state: &FilterState<'_>,
) -> Result<Arc<dyn Filter>, Invalid> {
    let none = || Invalid::new(format!("no filter is registered as {:?}", plugin.name));
    let factory = factory.ok_or_else(none)?;
    let made = catch_unwind(AssertUnwindSafe(|| factory(&plugin.config, state)));
    made.unwrap_or_else(|_| Err(Invalid::new(format!("the filter {:?} panics when it is made", plugin.name))))
}

impl Watched {
    /// Has the filter decide, and decides itself where that panics.
    fn decide(self: &Arc<Self>, info: &mut RequestInfo, decide: impl FnOnce(&mut RequestInfo) -> Decision) -> Decision {
        match catch_unwind(AssertUnwindSafe(|| decide(info))) {
            Ok(Decision::Callout(callout)) => {
                Decision::Callout(Box::pin(WatchedCallout { callout, of: Arc::clone(self) }))
            }
            Ok(decision) => decision,
            Err(_) => self.has_panicked(info),
        }
    }

    #[cold]
    fn has_panicked(&self, info: &mut RequestInfo) -> Decision {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let (filter, on_failure) = (&*self.plugin.name, self.plugin.on_failure);
            tracing::error!(filter, ?on_failure, "a filter panicked; what becomes of its requests is configured");
        }
        if self.plugin.on_failure == OnFailure::Restart {
            self.running.store(None);
        }
        self.without(info)
    }

    /// What becomes of a request that it does not look at.
    #[cold]
    fn without(&self, info: &mut RequestInfo) -> Decision {
        match self.plugin.on_failure {
            OnFailure::Pass => Decision::Continue,
            OnFailure::Refuse | OnFailure::Restart => {
                info.note_details("filter_failed");
                info.hold(Refused);
                let body = format!("the filter {:?}, which requests have to pass, does not run", self.plugin.name);
                Decision::Reply(Reply::new(StatusCode::INTERNAL_SERVER_ERROR, body))
            }
        }
    }

    /// Makes it anew, unless that was done a moment ago. What it kept is gone with the one before.
    #[cold]
    fn restart(&self, now: Instant) -> Option<Arc<Arc<dyn Filter>>> {
        if self.plugin.on_failure != OnFailure::Restart {
            return None;
        }
        let mut restarted = self.restarted.lock().unwrap_or_else(PoisonError::into_inner);
        if restarted.is_some_and(|at| now.saturating_duration_since(at) < BETWEEN_RESTARTS) {
            return self.running.load_full();
        }
        *restarted = Some(now);
        let states = States::default();
        let made = made(&self.plugin, self.factory.as_ref(), &states.filter("", &self.plugin.name));
        let made = made.ok();
        *self.kept.filter() = made.clone().map(|made| (Arc::clone(&self.plugin.name), made));
        let made = made.map(Arc::new);
        self.running.store(made.clone());
        made
    }
}

impl Filter for PluginFilter {
    fn on_request(&self, info: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        let restarted;
        let running = self.0.running.load();
        let filter = match &*running {
            Some(filter) => filter,
            None => {
                restarted = self.0.restart(info.started);
                let Some(filter) = &restarted else { return self.0.without(info) };
                filter
            }
        };
        self.0.decide(info, |info| filter.on_request(info, head))
    }

    /// A panic that is not passed over ends the answer: what the filter may have had to take out of it is not sent.
    fn on_response(&self, info: &mut RequestInfo, head: &mut response::Parts) {
        let restarted;
        let running = self.0.running.load();
        let filter = match &*running {
            Some(filter) => filter,
            // Nobody has seen the answer to a request that had passed it before it panicked.
            None => {
                restarted = self.0.restart(Instant::now());
                match &restarted {
                    Some(filter) => filter,
                    None if self.0.plugin.on_failure == OnFailure::Pass => return,
                    None if info.held::<Refused>().next().is_some() => return,
                    None => resume_unwind(Box::new("the filter that an answer has to pass does not run")),
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| filter.on_response(info, head)))
            && let Decision::Reply(_) = self.0.has_panicked(info)
        {
            resume_unwind(panic);
        }
    }

    fn name(&self) -> &str {
        &self.0.plugin.name
    }

    fn on_end(&self, request: &RequestInfo) {
        if let Some(filter) = &*self.0.running.load()
            && catch_unwind(AssertUnwindSafe(|| filter.on_end(request))).is_err()
        {
            tracing::error!(filter = &*self.0.plugin.name, "a filter panicked at the end of a request");
        }
    }
}

/// What the filter waits for, watched as it is itself.
struct WatchedCallout {
    callout: Callout,
    of: Arc<Watched>,
}

impl Future for WatchedCallout {
    type Output = Resume;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Resume> {
        let of = Arc::clone(&self.of);
        let resume = match catch_unwind(AssertUnwindSafe(|| self.callout.as_mut().poll(cx))) {
            Ok(polled) => ready!(polled),
            Err(_) => return Poll::Ready(Box::new(move |info, _| of.has_panicked(info))),
        };
        Poll::Ready(Box::new(move |info, head| of.decide(info, |info| resume(info, head))))
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("plugin", &self.plugin).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
