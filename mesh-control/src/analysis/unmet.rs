//! Conditions that no request meets, faults that hit none, and a case that is ignored to no effect.

use http::Method;

use crate::config::diagnostic::quoted;
use crate::config::istio::string_match::StringMatch;
use crate::config::istio::virtual_service::{HttpMatch, HttpRoute};

/// What has no effect in a rule for services of these ports: the field, and why.
pub(super) fn in_rule(route: &HttpRoute, ports: &[u16]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Some(fault) = &route.fault {
        let delay = fault.delay.as_ref().map(|delay| ("fault.delay", delay.percentage, delay.percent));
        let abort = fault.abort.as_ref().map(|abort| ("fault.abort", abort.percentage, abort.percent));
        for (field, percentage, percent) in delay.into_iter().chain(abort) {
            match (percentage, percent) {
                (None, None) => {
                    let none = "without effect: it hits no request, as `percentage` is missing";
                    found.push((field.to_owned(), none.to_owned()));
                }
                (Some(_), Some(_)) => {
                    found.push((format!("{field}.percent"), "without effect: `percentage` counts".to_owned()));
                }
                _ => {}
            }
        }
    }
    if route.cors_policy.is_some() && !route.matches.is_empty() && !route.matches.iter().any(takes_preflights) {
        let why = "preflights (OPTIONS, with no header of the page's own) meet none of its conditions: another rule answers them";
        found.push(("corsPolicy".to_owned(), why.to_owned()));
    }
    let of_try = route.retries.as_ref().and_then(|retries| retries.per_try_timeout);
    if let (Some(of_try), Some(whole)) = (of_try, route.timeout)
        && of_try > whole
        && !whole.is_zero()
    {
        let why = format!("without effect: `timeout` ends the whole request after {whole:?}, and each try with it");
        found.push(("retries.perTryTimeout".to_owned(), why));
    }
    for (index, condition) in route.matches.iter().enumerate() {
        if let Some(why) = idle_case(condition) {
            found.push((format!("match[{index}].ignoreUriCase"), format!("without effect: {why}")));
        }
        let unmet = unmet(condition, ports);
        found.extend(
            unmet.map(|(field, why)| (format!("match[{index}].{field}"), format!("no request meets it: {why}"))),
        );
    }
    found
}

/// Whether a preflight may meet a condition: it is what a browser asks before a page of another origin may send a request, without
/// the headers that the page sets, cookies and credentials.
fn takes_preflights(condition: &HttpMatch) -> bool {
    const OF_BROWSERS: [&str; 11] = [
        ":authority",
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "host",
        "origin",
        "pragma",
        "referer",
        "user-agent",
    ];
    let is_sent = |name: &String| {
        let name = name.to_ascii_lowercase();
        OF_BROWSERS.contains(&&*name) || name.starts_with("access-control-request-") || name.starts_with("sec-")
    };
    let is_options = match &condition.method {
        Some(StringMatch::Exact(method)) => method == Method::OPTIONS.as_str(),
        Some(StringMatch::Prefix(start)) => Method::OPTIONS.as_str().starts_with(start.as_str()),
        Some(StringMatch::Regex(_) | StringMatch::Present) | None => true,
    };
    is_options && condition.headers.keys().all(is_sent)
}

/// Why it makes no difference that the case of a path is ignored (Istio: it is for exact paths and prefixes).
fn idle_case(condition: &HttpMatch) -> Option<&'static str> {
    match &condition.uri {
        _ if !condition.ignore_uri_case => None,
        Some(StringMatch::Regex(_)) => Some("an expression is matched with its case; `(?i)` in front of it ignores it"),
        Some(StringMatch::Present) | None => Some("no path is compared"),
        Some(StringMatch::Exact(_) | StringMatch::Prefix(_)) => None,
    }
}

fn unmet(condition: &HttpMatch, ports: &[u16]) -> Option<(&'static str, String)> {
    let text = |written: &Option<StringMatch>| match written {
        Some(StringMatch::Exact(text) | StringMatch::Prefix(text)) => Some(text.clone()),
        _ => None,
    };
    let is_path = |path: &String| path.is_empty() || path.starts_with(['/', '*']);
    let is_nothing =
        |written: &Option<StringMatch>| matches!(written, Some(StringMatch::Exact(text)) if text.is_empty());
    if is_nothing(&condition.uri) {
        return Some(("uri", "no path is empty: `/` is the shortest".to_owned()));
    }
    for (field, written) in [("method", &condition.method), ("scheme", &condition.scheme)] {
        if is_nothing(written) {
            return Some((field, format!("no request has an empty {field}")));
        }
    }
    if let Some(path) = text(&condition.uri).filter(|path| !is_path(path)) {
        return Some(("uri", format!("a path begins with /, and {} does not", quoted(&path))));
    }
    if let Some(StringMatch::Exact(method)) = &condition.method
        && let Ok(meant) = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
        && is_known(&meant)
        && meant.as_str() != method
    {
        return Some(("method", format!("methods are told apart by case, and this one is {meant}")));
    }
    let port = condition.port.as_ref()?;
    let is_unknown = !ports.is_empty() && !ports.contains(&port.0);
    is_unknown.then(|| {
        let known: Vec<String> = ports.iter().map(u16::to_string).collect();
        ("port", format!("the hosts of this object have no port {}, only {}", port.0, known.join(", ")))
    })
}

fn is_known(method: &Method) -> bool {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
        Method::TRACE,
    ];
    known.contains(method)
}
