//! State-of-the-world requests: every request names the whole subscription of its kind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use crate::catalog::Kind;
use crate::serve::protocol::session::{Heard, Nonce, Session};

/// Reads one request into the session.
pub(crate) fn on_request(session: &mut Session, request: &DiscoveryRequest, now: Instant) -> Heard {
    let Some(kind) = Kind::from_type_url(&request.type_url) else {
        return Heard::default();
    };
    let nonce = session.nonce(&request.response_nonce);
    let (ledger, _) = session.ledger(kind);
    let first = ledger.open();
    let brought_listeners = first && kind == Kind::Listener && !request.version_info.is_empty();
    let mut heard = Heard { brought_listeners, ..Heard::default() };
    let error = request.error_detail.as_ref().map(|status| &*status.message);
    if ledger.last_nonce() > 0 {
        match nonce {
            // A list that was on its way when the client had not seen any response yet.
            Nonce::None => {}
            Nonce::Number(number) if number == ledger.last_nonce() => {
                heard.answer = session.verdict(kind, number, error, now);
                session.ledger(kind).0.supersede();
            }
            // The client has a newer response before it, and will repeat its list when it answers that. What it says of
            // the older one counts: the newer one need not have the same resources.
            Nonce::Number(_) | Nonce::Foreign => {
                ledger.doubt(&request.resource_names.iter().map(String::as_str).collect());
                if let Nonce::Number(number) = nonce {
                    heard.answer = session.verdict(kind, number, error, now);
                }
                return heard;
            }
        }
    }
    subscribe(session, kind, request, first, &mut heard);
    session.conclude(kind, heard, now)
}

/// Makes the subscription what the request says.
fn subscribe(session: &mut Session, kind: Kind, request: &DiscoveryRequest, first: bool, heard: &mut Heard) {
    let legacy = session.has_legacy_wildcard(kind);
    let mut names: BTreeSet<&str> = request.resource_names.iter().map(String::as_str).collect();
    let star = names.remove("*");
    let (ledger, view) = session.ledger(kind);
    // An empty list means everything only until the first name was asked for; after that it means nothing.
    let still_legacy =
        legacy && names.is_empty() && (first || (ledger.is_wildcard() && ledger.explicit().next().is_none()));
    ledger.set_wildcard(star || still_legacy, &view);
    let gone: Vec<Arc<str>> = ledger.explicit().filter(|name| !names.contains(&***name)).cloned().collect();
    let gone: Vec<&str> = gone.iter().map(|name| &**name).collect();
    heard.left.extend(ledger.unsubscribe(&gone, &view));
    // A client that already accepted a version holds resources, and no one knows which.
    let resumes = first && !request.version_info.is_empty();
    for name in names {
        let gained = match ledger.is_subscribed(name) {
            true => ledger.take_forgotten(name) && ledger.subscribe(name, &view),
            false if resumes => ledger.resume(name, None, &view),
            false => ledger.subscribe(name, &view),
        };
        if gained {
            heard.joined.push(Arc::from(name));
        }
    }
}
