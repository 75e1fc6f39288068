//! Sessions that stay at their endpoint (`envoy.extensions.filters.http.stateful_session.v3`).

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3 as pb;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use http::HeaderName;

use super::common::{duration, holds, type_name, unpack};
use super::notes::{Notes, ignored};
use crate::error::Invalid;
use crate::model::{FilterConfig, SessionCarrier, StatefulSession};

/// A filter; one without a state does nothing.
pub(super) fn session(notes: &mut Notes<'_>, value: pb::StatefulSession) -> Result<FilterConfig, Invalid> {
    let pb::StatefulSession { session_state, strict, stat_prefix: _, status_on_strict_destination_not_found } = value;
    // A request that cannot be sent is answered as any other is: with 503.
    if !matches!(status_on_strict_destination_not_found, 0 | 503) {
        ignored!(notes; status_on_strict_destination_not_found);
    }
    let carrier = notes.optional("session_state", session_state, |notes, state| {
        let any = state.typed_config.ok_or_else(|| Invalid::new("missing").at("typed_config"))?;
        if holds::<CookieBasedSessionState>(&any) {
            let CookieBasedSessionState { cookie } = unpack(&any)?;
            return notes.required("cookie", cookie, cookie_carrier);
        }
        if holds::<HeaderBasedSessionState>(&any) {
            let HeaderBasedSessionState { name } = unpack(&any)?;
            let name = HeaderName::from_bytes(name.as_bytes());
            let name = name.map_err(|_| Invalid::new("not a header name").at("name"))?;
            return Ok(SessionCarrier::Header(name));
        }
        Err(Invalid::new(format!("{:?} is not supported", type_name(&any.type_url))))
    })?;
    Ok(match carrier {
        Some(carrier) => {
            let mut session = StatefulSession::by(carrier);
            session.is_strict = strict;
            FilterConfig::StatefulSession(Arc::new(session))
        }
        None => FilterConfig::Disabled,
    })
}

/// What a route says instead.
pub(super) fn per_route(notes: &mut Notes<'_>, value: pb::StatefulSessionPerRoute) -> Result<FilterConfig, Invalid> {
    use pb::stateful_session_per_route::Override;
    match value.r#override {
        Some(Override::Disabled(true)) => Ok(FilterConfig::Disabled),
        Some(Override::Disabled(false)) => Err(Invalid::new("must be true").at("disabled")),
        Some(Override::StatefulSession(session)) => {
            notes.field("stateful_session", |notes| self::session(notes, session))
        }
        None => Err(Invalid::new("nothing is said").at("override")),
    }
}

fn cookie_carrier(notes: &mut Notes<'_>, value: Cookie) -> Result<SessionCarrier, Invalid> {
    let Cookie { name, ttl, path, attributes } = value;
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(Invalid::new(format!("{name:?} is not the name of a cookie")).at("name"));
    }
    let is_text = |text: &str| text.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b';');
    if !is_text(&path) {
        return Err(Invalid::new("not the path of a cookie").at("path"));
    }
    let attributes: Vec<_> = attributes.into_iter().map(|attribute| (attribute.name, attribute.value)).collect();
    if attributes.iter().any(|(name, value)| name.is_empty() || !is_text(name) || !is_text(value)) {
        return Err(Invalid::new("not an attribute of a cookie").at("attributes"));
    }
    let ttl = notes.optional("ttl", ttl, |_, ttl| duration(&ttl))?.filter(|ttl| !ttl.is_zero());
    Ok(SessionCarrier::Cookie { name: name.into(), path: path.into(), ttl, attributes })
}
