//! Incremental requests: every request names what changes in the subscription of its kind.

use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use crate::catalog::Kind;
use crate::serve::protocol::session::{Heard, Nonce, Session};

/// Reads one request into the session.
pub(crate) fn on_request(session: &mut Session, request: &DeltaDiscoveryRequest, now: Instant) -> Heard {
    let Some(kind) = Kind::from_type_url(&request.type_url) else {
        return Heard::default();
    };
    let mut heard = Heard::default();
    if let Nonce::Number(number) = session.nonce(&request.response_nonce) {
        let error = request.error_detail.as_ref().map(|status| &*status.message);
        heard.answer = session.verdict(kind, number, error, now);
    }
    // The change of subscription counts whatever the nonce says.
    let (ledger, _) = session.ledger(kind);
    let first = ledger.open();
    heard.brought_listeners = first && kind == Kind::Listener && !request.initial_resource_versions.is_empty();
    unsubscribe(session, kind, request, &mut heard);
    subscribe(session, kind, request, first, &mut heard);
    session.conclude(kind, heard, now)
}

// Before the subscriptions: a name in both lists was given up and asked for again.
fn unsubscribe(session: &mut Session, kind: Kind, request: &DeltaDiscoveryRequest, heard: &mut Heard) {
    let (ledger, view) = session.ledger(kind);
    let (stars, names): (Vec<&str>, Vec<&str>) =
        request.resource_names_unsubscribe.iter().map(String::as_str).partition(|name| *name == "*");
    if !stars.is_empty() {
        ledger.set_wildcard(false, &view);
    }
    heard.left.extend(ledger.unsubscribe(&names, &view));
}

fn subscribe(session: &mut Session, kind: Kind, request: &DeltaDiscoveryRequest, first: bool, heard: &mut Heard) {
    let legacy = session.has_legacy_wildcard(kind);
    let (ledger, view) = session.ledger(kind);
    for name in request.resource_names_subscribe.iter().filter(|name| *name != "*") {
        // What a client brought along it tells with the first request that has the name: it may be in several, so that
        // none is too large.
        let brought = request.initial_resource_versions.get(name).filter(|_| !ledger.is_known(name));
        let gained = match brought {
            Some(version) => ledger.resume(name, Some(version), &view),
            None => ledger.subscribe(name, &view),
        };
        if gained {
            heard.joined.push(Arc::from(&**name));
        }
    }
    let star = request.resource_names_subscribe.iter().any(|name| name == "*");
    if star || (legacy && first && request.resource_names_subscribe.is_empty()) {
        if first {
            for (name, version) in &request.initial_resource_versions {
                ledger.inherit(name, version, &view);
            }
        }
        ledger.set_wildcard(true, &view);
    }
}
