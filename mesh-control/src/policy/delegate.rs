//! Delegation: a rule that continues with the rules of another VirtualService
//! (Istio: pilot/pkg/model/virtualservice.go).
//!
//! One level deep; every condition of the delegate must be narrower than one of the rule that delegates, and
//! says both in the end. What the delegate leaves open is filled in from the rule.

use std::collections::BTreeMap;

use super::text::TextMatch;
use crate::config::istio::string_match::StringMatch;
use crate::config::istio::virtual_service::{HeaderOperations, Headers, HttpMatch, HttpRoute};

/// A rule of the delegate, narrowed by the rule that delegates. `None` if one of its conditions is not compatible: then
/// none of it is in force.
pub fn merge(root: &HttpRoute, child: &HttpRoute) -> Option<HttpRoute> {
    let mut merged = child.clone();
    merged.matches = merge_matches(&root.matches, &child.matches)?;
    merged.name = match (root.name.as_str(), child.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (root, child) => format!("{root}-{child}"),
    };
    fill(&mut merged.rewrite, &root.rewrite);
    fill(&mut merged.timeout, &root.timeout);
    fill(&mut merged.retries, &root.retries);
    fill(&mut merged.fault, &root.fault);
    fill(&mut merged.mirror, &root.mirror);
    fill(&mut merged.mirror_percentage, &root.mirror_percentage);
    fill(&mut merged.cors_policy, &root.cors_policy);
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
    merged.headers = Headers {
        span: child.headers.span,
        request: merge_operations(&root.headers.request, &child.headers.request),
        response: merge_operations(&root.headers.response, &child.headers.response),
    };
    Some(merged)
}

fn fill<T: Clone>(own: &mut Option<T>, inherited: &Option<T>) {
    if own.is_none() {
        own.clone_from(inherited);
    }
}

fn merge_operations(root: &HeaderOperations, child: &HeaderOperations) -> HeaderOperations {
    let mut merged = root.clone();
    merged.set.extend(child.set.clone());
    merged.add.extend(child.add.clone());
    merged.remove.extend(child.remove.clone());
    merged
}

fn merge_matches(root: &[HttpMatch], child: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(child.to_vec());
    }
    if child.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for child in child {
        let before = merged.len();
        let wider = root.iter().filter(|root| is_narrower(root, child));
        merged.extend(wider.map(|root| merge_match(root, child)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatch, child: &HttpMatch) -> HttpMatch {
    let mut merged = child.clone();
    if merged.name.is_empty() {
        merged.name.clone_from(&root.name);
    }
    fill(&mut merged.uri, &root.uri);
    fill(&mut merged.scheme, &root.scheme);
    fill(&mut merged.method, &root.method);
    fill(&mut merged.authority, &root.authority);
    fill(&mut merged.port, &root.port);
    for (name, value) in &root.headers {
        merged.headers.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in &root.without_headers {
        let own = merged.without_headers.entry(name.clone()).or_insert_with(|| value.clone());
        // The wider of the two excludes what either does.
        if excludes_all_of(value, own) {
            own.clone_from(value);
        }
    }
    for (name, value) in &root.query_params {
        merged.query_params.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in &root.source_labels {
        merged.source_labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    }
    merged.ignore_uri_case |= root.ignore_uri_case;
    merged
}

fn is_narrower(root: &HttpMatch, child: &HttpMatch) -> bool {
    let texts = [
        (&root.uri, &child.uri),
        (&root.scheme, &child.scheme),
        (&root.method, &child.method),
        (&root.authority, &child.authority),
    ];
    let by_text = texts.into_iter().all(|(root, child)| match (root, child) {
        (Some(root), Some(child)) => text_is_narrower(root, child),
        _ => true,
    });
    let by_header = of_same_name(&root.headers, &child.headers).all(|(root, child)| text_is_narrower(root, child));
    let by_exclusion = of_same_name(&root.without_headers, &child.without_headers)
        .all(|(root, child)| excludes_all_of(root, child) || excludes_all_of(child, root));
    let by_query = root
        .query_params
        .iter()
        .all(|(name, root)| child.query_params.get(name).is_none_or(|child| text_is_narrower(root, child)));
    let by_gateway = root.gateways.is_empty()
        || child.gateways.iter().all(|child| root.gateways.iter().any(|root| root.value == child.value));
    let labels =
        root.source_labels.iter().all(|(name, value)| child.source_labels.get(name).is_none_or(|child| child == value));
    let namespace = root.source_namespace.is_empty()
        || child.source_namespace.is_empty()
        || root.source_namespace == child.source_namespace;
    let port = root.port.is_none() || child.port.is_none() || root.port == child.port;
    let by_request = by_text && by_header && by_exclusion && by_query && root.ignore_uri_case == child.ignore_uri_case;
    by_request && by_gateway && labels && namespace && port
}

/// Conditions of both on the same header, however its name is written.
fn of_same_name<'m>(
    root: &'m BTreeMap<String, StringMatch>,
    child: &'m BTreeMap<String, StringMatch>,
) -> impl Iterator<Item = (&'m StringMatch, &'m StringMatch)> {
    root.iter().flat_map(move |(name, root)| {
        let same = child.iter().filter(move |(other, _)| name.eq_ignore_ascii_case(other));
        same.map(move |(_, child)| (root, child))
    })
}

/// Whether a header that the second condition excludes is excluded by the first, too. A missing header counts as empty,
/// but to `{}`, which excludes those that are there.
fn excludes_all_of(wide: &StringMatch, narrow: &StringMatch) -> bool {
    match (wide, narrow) {
        (StringMatch::Present, StringMatch::Present) => true,
        (StringMatch::Present, narrow) => !TextMatch::from(narrow).matches(""),
        (wide, narrow) => text_is_narrower(wide, narrow),
    }
}

fn text_is_narrower(root: &StringMatch, child: &StringMatch) -> bool {
    match (root, child) {
        (StringMatch::Present, _) => true,
        (StringMatch::Exact(root), StringMatch::Exact(child)) => root == child,
        (StringMatch::Prefix(root), StringMatch::Exact(child) | StringMatch::Prefix(child)) => {
            child.starts_with(root.as_str())
        }
        // Of an expression nobody can tell what it covers.
        (StringMatch::Regex(root), StringMatch::Regex(child)) => root == child,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn route(uri: Option<StringMatch>) -> HttpRoute {
        let condition = HttpMatch { uri, ..Default::default() };
        HttpRoute { matches: vec![condition], ..Default::default() }
    }

    fn prefix(text: &str) -> Option<StringMatch> {
        Some(StringMatch::Prefix(text.to_owned()))
    }

    #[test]
    fn a_delegate_narrows_the_rule_and_inherits_what_it_leaves_open() {
        let mut root = route(prefix("/shop"));
        root.timeout = Some(Duration::from_secs(3));
        root.name = "root".to_owned();
        let mut child = route(prefix("/shop/cart"));
        child.name = "child".to_owned();
        let merged = merge(&root, &child).unwrap();
        assert_eq!(merged.matches[0].uri, prefix("/shop/cart"));
        assert_eq!(merged.timeout, Some(Duration::from_secs(3)));
        assert_eq!(merged.name, "root-child");

        let everything = HttpRoute::default();
        assert_eq!(merge(&root, &everything).unwrap().matches[0].uri, prefix("/shop"));
        assert_eq!(merge(&everything, &child).unwrap().matches[0].uri, prefix("/shop/cart"));
    }

    #[test]
    fn what_either_excludes_stays_excluded() {
        let without = |value: StringMatch| {
            let condition = HttpMatch { without_headers: [("a".to_owned(), value)].into(), ..Default::default() };
            HttpRoute { matches: vec![condition], ..Default::default() }
        };
        let exact = |text: &str| StringMatch::Exact(text.to_owned());
        let (wide, present) = (prefix("x").unwrap(), StringMatch::Present);
        for (root, child, expected) in [
            (&wide, &exact("xy"), Some(&wide)),
            (&exact("xy"), &wide, Some(&wide)),
            (&wide, &present, Some(&present)),
            (&present, &wide, Some(&present)),
            (&wide, &exact("y"), None),
            // A missing header is excluded by the one, all others by the other.
            (&exact(""), &present, None),
            (&present, &exact(""), None),
        ] {
            let merged = merge(&without(root.clone()), &without(child.clone()));
            let kept = merged.as_ref().map(|merged| &merged.matches[0].without_headers["a"]);
            assert_eq!(kept, expected, "{root:?} {child:?}");
        }
    }

    #[test]
    fn a_delegate_that_reaches_beyond_the_rule_is_left_out() {
        let root = route(prefix("/shop"));
        assert!(merge(&root, &route(prefix("/"))).is_none());
        assert!(merge(&root, &route(Some(StringMatch::Regex(".*".to_owned())))).is_none());
    }
}
