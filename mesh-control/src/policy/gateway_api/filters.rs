//! Filters that change headers, and those that tell browsers what pages of other origins may do.

use std::time::Duration;

use crate::config::gateway_api::filters::{Header, HeaderModifier, HttpFilter};
use crate::policy::route::{Changes, Cors, HeaderChanges};
use crate::policy::text::TextMatch;

pub(super) fn header_changes(filters: &[HttpFilter]) -> HeaderChanges {
    let request = filters.iter().find_map(|filter| filter.request_header_modifier.as_ref());
    let response = filters.iter().find_map(|filter| filter.response_header_modifier.as_ref());
    HeaderChanges {
        request: request.map(changes).unwrap_or_default(),
        response: response.map(changes).unwrap_or_default(),
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host")
}

/// Setting the header `Host` is a rewrite of the authority, as with a VirtualService.
pub(super) fn authority_of(filters: &[HttpFilter]) -> Option<String> {
    let modifier = filters.iter().find_map(|filter| filter.request_header_modifier.as_ref())?;
    let mut all = modifier.set.iter().chain(&modifier.add);
    all.find(|header| is_authority(&header.name)).map(|header| header.value.value.clone())
}

fn changes(modifier: &HeaderModifier) -> Changes {
    // Of headers with one name, the first counts. Values are as they are written: `%` means nothing in them.
    let pairs = |headers: &[Header]| {
        let mut kept: Vec<(String, String)> = Vec::new();
        for header in headers.iter().filter(|header| !is_authority(&header.name)) {
            let name = header.name.to_ascii_lowercase();
            if kept.iter().all(|(earlier, _)| *earlier != name) {
                kept.push((name, header.value.replace('%', "%%")));
            }
        }
        kept
    };
    Changes {
        remove: modifier.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
        set: pairs(&modifier.set),
        add: pairs(&modifier.add),
    }
}

/// How long a browser may remember where nothing is said (Gateway API).
const MAX_AGE: u32 = 5;

/// Preflights that nobody allows go no further, as in Istio.
pub(super) fn cors(filters: &[HttpFilter]) -> Option<Cors> {
    let written = filters.iter().find_map(|filter| filter.cors.as_ref())?;
    // `*` is for requests without credentials (Gateway API).
    let has_credentials = written.allow_credentials == Some(true);
    let exposed = written.expose_headers.iter().filter(|name| !has_credentials || *name != "*").map(String::as_str);
    Some(Cors {
        origins: written.allow_origins.iter().map(|origin| origin_match(origin)).collect(),
        methods: written.allow_methods.iter().map(|method| method.name()).collect::<Vec<_>>().join(","),
        headers: written.allow_headers.join(","),
        exposed: exposed.collect::<Vec<_>>().join(","),
        max_age: Some(Duration::from_secs(u64::from(written.max_age.unwrap_or(MAX_AGE)))),
        credentials: written.allow_credentials,
        forwards_others: Some(false),
    })
}

/// `*` is every origin, and in front of a domain all below it.
fn origin_match(origin: &str) -> TextMatch {
    let Some((scheme, domain)) = origin.split_once("://*.") else { return TextMatch::Exact(origin.to_owned()) };
    let literal = |text: &str| -> String {
        let escaped = |c: char| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\{c}") };
        text.chars().map(escaped).collect()
    };
    TextMatch::Regex(format!("{}://[^/]+\\.{}", literal(scheme), literal(domain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_front_of_a_domain_is_all_below_it() {
        let origin = origin_match("https://*.a-b.example:8443");
        for (text, expected) in [
            ("https://x.a-b.example:8443", true),
            ("https://x.y.a-b.example:8443", true),
            ("https://a-b.example:8443", false),
            ("https://x.a-b.example", false),
            ("https://x.aXb.example:8443", false),
            ("http://x.a-b.example:8443", false),
            ("https://evil.example/.a-b.example:8443", false),
        ] {
            assert_eq!(origin.matches(text), expected, "{text}");
        }
        assert_eq!(origin_match("*"), TextMatch::Exact("*".to_owned()));
    }
}
