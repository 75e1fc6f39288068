//! Runs a chain of filters: the one place that carries out what they decide, for both sides and both directions.

use std::sync::Arc;

use http::{request, response};
use mesh_core::filter::{Callout, Decision, Filter, Reply, ResponseCallout, Resume};
use mesh_core::live_trace::Stage;
use mesh_core::request_info::RequestInfo;
use serde_json::{Value, json};

/// How far a request came in its chain.
pub(crate) enum Passage {
    /// Through all of it.
    Passed,
    /// It is answered here.
    Answered(Reply),
    /// A filter holds it back. What it wakes up with goes to [`resume`].
    Held(Callout),
}

/// Passes the filters from the one at `entered` on; `entered` is how many have seen the request.
pub(crate) fn on_request(
    filters: &[Arc<dyn Filter>],
    entered: &mut usize,
    info: &mut RequestInfo,
    head: &mut request::Parts,
) -> Passage {
    while let Some(filter) = filters.get(*entered) {
        *entered += 1;
        match filter.on_request(info, head) {
            Decision::Continue => {}
            decision => match carry_out(decision) {
                Passage::Passed => {}
                ended => return told(ended, filter, info),
            },
        }
    }
    Passage::Passed
}

/// Notes what a filter made of a request that it did not pass on.
#[cold]
fn told(passage: Passage, filter: &Arc<dyn Filter>, info: &mut RequestInfo) -> Passage {
    let outcome = match &passage {
        Passage::Passed => return passage,
        Passage::Answered(_) => {
            info.note_details("filter_response");
            "answered"
        }
        Passage::Held(_) => {
            info.waits_for(Stage::Filter);
            "held back"
        }
    };
    info.note_event("filter", || event(outcome, &**filter));
    passage
}

/// What is told of a filter that did not pass a request on. One that is built in has no name: what it notes says which it was.
fn event(outcome: &str, filter: &dyn Filter) -> Value {
    json!({"outcome": outcome, "filter": Some(filter.name()).filter(|name| !name.is_empty())})
}

/// The filter that held the request back decides; then the chain goes on.
pub(crate) fn resume(
    decide: Resume,
    filters: &[Arc<dyn Filter>],
    entered: &mut usize,
    info: &mut RequestInfo,
    head: &mut request::Parts,
) -> Passage {
    match carry_out(decide(info, head)) {
        Passage::Passed => on_request(filters, entered, info, head),
        ended => match entered.checked_sub(1).and_then(|last| filters.get(last)) {
            Some(filter) => told(ended, filter, info),
            None => ended,
        },
    }
}

fn carry_out(decision: Decision) -> Passage {
    match decision {
        Decision::Continue => Passage::Passed,
        Decision::Reply(reply) => Passage::Answered(reply),
        Decision::Callout(callout) => Passage::Held(callout),
        Decision::Delay(delay, reply) => Passage::Held(Box::pin(async move {
            tokio::time::sleep(delay).await;
            let then = reply.map_or(Decision::Continue, Decision::Reply);
            Box::new(move |_: &mut RequestInfo, _: &mut request::Parts| then) as Resume
        })),
    }
}

/// What the next filter waits for that holds a response back, of those before the one at `left`, which saw the request; the last one
/// first.
pub(crate) fn hold_response(
    filters: &[Arc<dyn Filter>],
    left: &mut usize,
    info: &mut RequestInfo,
    head: &response::Parts,
) -> Option<ResponseCallout> {
    while let Some(before) = left.checked_sub(1) {
        *left = before;
        if let Some(callout) = filters.get(before).and_then(|filter| filter.hold_response(info, head)) {
            return Some(callout);
        }
    }
    None
}

/// Passes the filters on the way back: those that saw the request, the last one first.
pub(crate) fn on_response(
    filters: &[Arc<dyn Filter>],
    entered: usize,
    info: &mut RequestInfo,
    head: &mut response::Parts,
) {
    for filter in filters.iter().take(entered).rev() {
        filter.on_response(info, head);
    }
}

/// Tells those that saw the request that it is over.
pub(crate) fn on_end(filters: &[Arc<dyn Filter>], entered: usize, info: &RequestInfo) {
    for filter in filters.iter().take(entered) {
        filter.on_end(info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Called(&'static str);

    impl Filter for Called {
        fn on_request(&self, _: &mut RequestInfo, _: &mut request::Parts) -> Decision {
            Decision::Continue
        }

        fn name(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn a_filter_without_a_name_is_told_without_one() {
        assert_eq!(event("answered", &Called("acme.guard")), json!({"outcome": "answered", "filter": "acme.guard"}));
        assert_eq!(event("held back", &Called("")), json!({"outcome": "held back", "filter": null}));
    }
}
