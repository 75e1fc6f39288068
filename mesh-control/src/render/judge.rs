//! The one judge of what is published: the data plane's own decoder. What it refuses does not leave mesh-control in that
//! form, and is a finding where it is written. `validate` asks the same judge before anything is published.
//!
//! A route that is refused becomes one that answers with the reason; the other routes of its host are as they were. A
//! cluster becomes one without endpoints.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use envoy_types::pb::envoy::config::route::v3 as pb;
use mesh_core::error::Invalid;
use mesh_core::resources::ResourceType;
use mesh_core::xds::decode::{Options, decode};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::{library, proto};
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::policy::Cluster;
use crate::policy::mesh::MeshSettings;
use crate::policy::route::{Action, Condition, Faults, HeaderChanges, Route};

const MOST_REMEMBERED: usize = 65_536;

/// So many routes the decoder is asked about at a time: a configuration around each of them costs as much as a route.
const TOGETHER: usize = 64;

/// Asks the data plane's decoder, and remembers by its hash what was accepted. Most resources stay as they are when the
/// configuration changes, and a route is the same for most clients: each is decoded once. Nothing but time depends on it, so that
/// it is forgotten when it is full.
#[derive(Debug, Default)]
pub struct Judge {
    accepted: Mutex<HashSet<(Judged, u64)>>,
}

/// What bytes are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Judged {
    Resource(ResourceType),
    /// One route of a route configuration.
    Route,
}

impl Judge {
    /// What the decoder says of a resource.
    pub(super) fn verdict(&self, kind: ResourceType, bytes: &[u8]) -> Result<(), Invalid> {
        let key = (Judged::Resource(kind), xxh3_64(bytes));
        if !self.remembered().contains(&key) {
            ask(kind, bytes)?;
            self.remember([key]);
        }
        Ok(())
    }

    /// Encodes a route configuration that is accepted, whose one virtual host has these routes. It is judged route by route: none
    /// depends on another. Each is made and encoded by itself, since there may be thousands.
    pub(super) fn accepted(
        &self,
        config: pb::RouteConfiguration,
        routes: impl IntoIterator<Item = pb::Route>,
    ) -> Result<Vec<u8>, Invalid> {
        let routes = routes.into_iter().map(|route| self.verdict_on_route(route)).collect::<Result<_, _>>()?;
        self.verdict(ResourceType::Route, &config.encode_to_vec())?;
        Ok(proto::with_routes(config, vec![routes]))
    }

    /// What the decoder says of routes, in the form that the library gets.
    pub(super) fn verdict_on_routes(&self, routes: &[Route], mesh: &MeshSettings) -> Result<(), Invalid> {
        routes.chunks(TOGETHER).try_for_each(|routes| {
            let encoded = routes.iter().map(|route| proto::ordered_route(library::render_route(route, mesh)));
            let new: Vec<Vec<u8>> = encoded.filter(|route| !self.remembered().contains(&key_of_route(route))).collect();
            match self.verdict_on_encoded(&new) {
                // Which of them it is.
                Err(_) if new.len() > 1 => new.chunks(1).try_for_each(|route| self.verdict_on_encoded(route)),
                verdict => verdict,
            }
        })
    }

    fn verdict_on_route(&self, route: pb::Route) -> Result<Vec<u8>, Invalid> {
        let encoded = proto::ordered_route(route);
        if !self.remembered().contains(&key_of_route(&encoded)) {
            self.verdict_on_encoded(std::slice::from_ref(&encoded))?;
        }
        Ok(encoded)
    }

    /// What the decoder says of routes that are encoded, in one configuration.
    fn verdict_on_encoded(&self, routes: &[Vec<u8>]) -> Result<(), Invalid> {
        if !routes.is_empty() {
            ask(ResourceType::Route, &proto::routes_alone(routes))?;
            self.remember(routes.iter().map(|route| key_of_route(route)));
        }
        Ok(())
    }

    fn remembered(&self) -> MutexGuard<'_, HashSet<(Judged, u64)>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, keys: impl IntoIterator<Item = (Judged, u64)>) {
        let mut accepted = self.remembered();
        if accepted.len() >= MOST_REMEMBERED {
            accepted.clear();
        }
        accepted.extend(keys);
    }
}

fn key_of_route(encoded: &[u8]) -> (Judged, u64) {
    (Judged::Route, xxh3_64(encoded))
}

fn ask(kind: ResourceType, bytes: &[u8]) -> Result<(), Invalid> {
    #[cfg(test)]
    JUDGED.with(|judged| judged.set(judged.get() + 1));
    decode(kind, bytes, &Options::default()).map(drop)
}

#[cfg(test)]
thread_local! {
    /// How often the decoder was asked: what is remembered is counted, not timed.
    pub(crate) static JUDGED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Routes that are refused together as they can be published, and what is to be said of those that cannot. `accepts` is
/// asked about each of them.
pub(super) fn publishable(
    routes: Vec<Route>,
    accepts: impl Fn(&[Route]) -> Result<(), Invalid>,
) -> (Vec<Route>, Vec<Diagnostic>) {
    let mut found = Vec::new();
    let judged = routes.into_iter().map(|route| {
        let Err(invalid) = accepts(std::slice::from_ref(&route)) else { return route };
        found.extend(finding(&route, &invalid));
        let fails = |condition| failing(&route, condition, &invalid.reason);
        let with_all = fails(route.condition.clone());
        let is_accepted = |condition: &Condition| accepts(&[fails(condition.clone())]).is_ok();
        if is_accepted(&route.condition) { with_all } else { fails(widened(&route.condition, is_accepted)) }
    });
    (judged.collect(), found)
}

/// A route for these requests that answers with the reason.
fn failing(route: &Route, condition: Condition, reason: &str) -> Route {
    let place = route.written.as_ref().map(|written| format!("{}: {}: ", written.object, written.field));
    let reason = format!("{}{reason}", place.unwrap_or_default());
    Route {
        name: route.name.clone(),
        condition,
        action: Action::Fail(reason.into()),
        faults: Faults::default(),
        cors: None,
        headers: HeaderChanges::default(),
        written: route.written.clone(),
    }
}

/// The conditions that are accepted. Without the others there are more requests that meet them, and none fewer: a request
/// that the route is for must not reach a later one.
fn widened(condition: &Condition, is_accepted: impl Fn(&Condition) -> bool) -> Condition {
    let mut kept = Condition::default();
    let mut add = |change: &dyn Fn(&mut Condition)| {
        let mut narrower = kept.clone();
        change(&mut narrower);
        if is_accepted(&narrower) {
            kept = narrower;
        }
    };
    add(&|it| {
        it.path = condition.path.clone();
        it.ignore_path_case = condition.ignore_path_case;
    });
    add(&|it| it.method = condition.method.clone());
    add(&|it| it.scheme = condition.scheme.clone());
    add(&|it| it.authority = condition.authority.clone());
    for (name, value) in &condition.headers {
        add(&|it| it.headers.push((name.clone(), value.clone())));
    }
    for (name, value) in &condition.without_headers {
        add(&|it| it.without_headers.push((name.clone(), value.clone())));
    }
    for (name, value) in &condition.query {
        add(&|it| it.query.push((name.clone(), value.clone())));
    }
    kept
}

fn finding(route: &Route, invalid: &Invalid) -> Option<Diagnostic> {
    let written = route.written.as_ref()?;
    let what = format!("{}; its requests are answered with 503 and this reason", said(invalid));
    let finding = Diagnostic::at(&written.origin, Severity::Error, Code::Refused, what);
    Some(finding.object(written.object.clone()).field(written.field.clone()))
}

/// What is to be said of a cluster that is refused.
pub(super) fn of_cluster(seen: &Cluster<'_>, invalid: &Invalid) -> Diagnostic {
    let meta = seen.rule.map_or(&seen.service.meta, |rule| &rule.meta);
    let what = format!("{}; there are no endpoints for {}", said(invalid), seen.key);
    Diagnostic::at(&meta.origin, Severity::Error, Code::Refused, what).object(meta.id())
}

fn said(invalid: &Invalid) -> String {
    // The first two steps are the same for every route.
    let field = invalid.field.splitn(3, '.').nth(2).filter(|_| invalid.field.starts_with("virtual_hosts"));
    format!("refused by the data plane: {}: {}", field.unwrap_or(&invalid.field), invalid.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::text::TextMatch;

    fn route(condition: Condition) -> Route {
        Route {
            name: String::new(),
            condition,
            action: Action::Fail("the one it has".into()),
            faults: Faults::default(),
            cors: None,
            headers: HeaderChanges::default(),
            written: None,
        }
    }

    fn published(routes: Vec<Route>) -> Vec<Route> {
        let (judge, mesh) = (Judge::default(), MeshSettings::default());
        let (published, _) = publishable(routes, |routes| judge.verdict_on_routes(routes, &mesh));
        judge.verdict_on_routes(&published, &mesh).expect("what is published is accepted");
        published
    }

    fn reason(route: &Route) -> &str {
        let Action::Fail(reason) = &route.action else { panic!("it fails") };
        reason
    }

    fn starts(text: &str) -> TextMatch {
        TextMatch::Prefix(text.to_owned())
    }

    #[test]
    fn a_refused_condition_makes_its_route_fail_for_every_request_that_it_is_for_and_the_others_stay() {
        let headers = [("bad".to_owned(), starts("")), ("good".to_owned(), starts("x"))].into();
        let good = route(Condition { path: starts("/good"), ..Default::default() });
        let bad = route(Condition { path: starts("/a"), method: Some(starts("")), headers, ..Default::default() });
        let published = published(vec![good.clone(), bad]);
        assert_eq!((&published[0].condition, reason(&published[0])), (&good.condition, "the one it has"));
        let headers = [("good".to_owned(), starts("x"))].into();
        assert_eq!(published[1].condition, Condition { path: starts("/a"), headers, ..Default::default() });
        assert!(reason(&published[1]).contains("must not be empty"), "{}", reason(&published[1]));
    }

    #[test]
    fn routes_are_judged_together_and_each_once() {
        let judge = Judge::default();
        let routes: Vec<Route> = (0..2 * TOGETHER)
            .map(|at| route(Condition { path: starts(&format!("/{at}")), ..Default::default() }))
            .collect();
        for (routes, expected) in [(&routes[..TOGETHER + 1], 2), (&routes[..], 1), (&routes[..], 0)] {
            JUDGED.set(0);
            judge.verdict_on_routes(routes, &MeshSettings::default()).expect("they are accepted");
            assert_eq!(JUDGED.get(), expected);
        }
    }

    #[test]
    fn a_refused_effect_makes_its_route_fail_for_the_same_requests() {
        let condition = Condition { path: starts("/a"), ..Default::default() };
        let mut bad = route(condition.clone());
        bad.headers.request.set = vec![("x-a".to_owned(), "100%".to_owned())];
        let published = published(vec![bad]);
        assert_eq!(published[0].condition, condition);
        assert!(published[0].headers.is_none() && reason(&published[0]).contains("a lone %"));
    }
}
