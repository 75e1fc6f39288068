//! Conditions on what the request's token says, as Istio has them: matchers of the metadata that Envoy's JWT filter leaves.

use envoy_types::pb::envoy::config::rbac::v3::{Principal, SourcedMetadata, principal::Identifier};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use matcher::value_matcher::MatchPattern;
use matcher::{MetadataMatcher, StringMatcher, ValueMatcher};

use super::{all_principals, ends, exactly, starts, text, who};
use crate::policy::access::Value;

/// A claim that is one of these, or a list in which one of them is.
pub(super) fn claim(path: &[String], values: &[Value]) -> Principal {
    let texts = || one_of(values.iter().map(|value| a_text(text(value))).collect());
    let in_it = matcher::list_matcher::MatchPattern::OneOf(Box::new(texts()));
    let list = MatchPattern::ListMatch(Box::new(matcher::ListMatcher { match_pattern: Some(in_it) }));
    let either = vec![ValueMatcher { match_pattern: Some(list) }, texts()];
    payload(path.iter().map(String::as_str), one_of(either))
}

/// A value that fits one of these. Of one alone there is no choice: Envoy refuses the whole listener for it.
fn one_of(mut value_matchers: Vec<ValueMatcher>) -> ValueMatcher {
    match value_matchers.len() {
        1 => value_matchers.remove(0),
        _ => ValueMatcher { match_pattern: Some(MatchPattern::OrMatch(matcher::OrMatcher { value_matchers })) },
    }
}

/// A principal by its two parts, as Istio takes it apart: the subject is what is behind the last slash. Two issuers
/// cannot be taken for each other so, where the one is the start of the other.
pub(super) fn by_parts(value: &Value) -> Principal {
    let any = || text(&Value::Present);
    let (issuer, subject) = match value {
        Value::Exact(value) => match divided(value) {
            Some((issuer, subject)) => (exactly(issuer), exactly(subject)),
            // There is no such principal.
            None => (exactly(value), exactly("")),
        },
        Value::Prefix(prefix) => match divided(prefix) {
            Some((issuer, "")) => (exactly(issuer), any()),
            Some((issuer, subject)) => (exactly(issuer), starts(subject)),
            None => (starts(prefix), any()),
        },
        Value::Suffix(suffix) => match divided(suffix) {
            Some(("", subject)) => (any(), exactly(subject)),
            Some((issuer, subject)) => (ends(issuer), exactly(subject)),
            None => (any(), ends(suffix)),
        },
        _ => (any(), any()),
    };
    all_principals(vec![payload(["iss"], a_text(issuer)), payload(["sub"], a_text(subject))])
}

/// A principal as it is written, however it comes apart: for what refuses, and for what is no leave to come in.
pub(super) fn whole(value: &Value) -> Principal {
    metadata("istio_authn", ["request.auth.principal"], a_text(text(value)))
}

/// At the last slash, but for that of `https://`.
fn divided(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('/').filter(|(issuer, _)| !issuer.ends_with(":/"))
}

fn a_text(test: StringMatcher) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(MatchPattern::StringMatch(test)) }
}

fn payload<'a>(path: impl IntoIterator<Item = &'a str>, value: ValueMatcher) -> Principal {
    metadata("envoy.filters.http.jwt_authn", ["payload"].into_iter().chain(path), value)
}

fn metadata<'a>(filter: &str, path: impl IntoIterator<Item = &'a str>, value: ValueMatcher) -> Principal {
    use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    let path = path.into_iter().map(|key| PathSegment { segment: Some(Segment::Key(key.to_owned())) });
    let test = MetadataMatcher { filter: filter.to_owned(), path: path.collect(), value: Some(value), invert: false };
    who(Identifier::SourcedMetadata(SourcedMetadata { metadata_matcher: Some(test), ..Default::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_has_two_values_at_least() {
        for (values, choices) in [(&["a"][..], 1), (&["a", "b"], 3)] {
            let values: Vec<Value> = values.iter().map(|&value| Value::Exact(value.into())).collect();
            let told = format!("{:?}", claim(&["group".to_owned()], &values));
            assert_eq!(told.matches("OrMatcher {").count(), choices, "{told}");
        }
    }
}
