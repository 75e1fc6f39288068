//! What an `EnvoyFilter` says that requests are counted by: `rate_limits` of virtual hosts, routes and filters.

use std::sync::Arc;

use mesh_core::model::{DescriptorAction, FullRegex, HeaderTest, RateLimit as Counted, StringTest};
use mesh_core::xds::decode::header_name;

use super::Fault;
use crate::config::decode::{Opaque, Text, message};

message! {
    /// `RateLimit` of a route.
    pub struct RateLimitEntry {
        actions: Vec<Action> = "actions",
    }
    pub struct Action {
        request_headers: Option<HeaderAction> = "request_headers",
        query_parameters: Option<QueryAction> = "query_parameters",
        remote_address: Option<Opaque> = "remote_address",
        destination_cluster: Option<Opaque> = "destination_cluster",
        generic_key: Option<ConstantAction> = "generic_key",
        header_value_match: Option<HeaderMatchAction> = "header_value_match",
    }
    pub struct HeaderAction {
        header_name: Text = "header_name" required,
        descriptor_key: String = "descriptor_key" required,
        skip_if_absent: Option<bool> = "skip_if_absent",
    }
    pub struct QueryAction {
        name: Text = "query_parameter_name" required,
        descriptor_key: String = "descriptor_key" required,
        skip_if_absent: Option<bool> = "skip_if_absent",
    }
    pub struct ConstantAction {
        descriptor_key: Option<String> = "descriptor_key",
        descriptor_value: String = "descriptor_value" required,
    }
    pub struct HeaderMatchAction {
        descriptor_key: Option<String> = "descriptor_key",
        descriptor_value: String = "descriptor_value" required,
        expect_match: Option<bool> = "expect_match",
        headers: Vec<HeaderMatcher> = "headers",
    }
    pub struct HeaderMatcher {
        name: Text = "name" required,
        exact: Option<String> = "exact_match",
        prefix: Option<String> = "prefix_match",
        suffix: Option<String> = "suffix_match",
        contains: Option<String> = "contains_match",
        regex: Option<Regex> = "safe_regex_match",
        present: Option<bool> = "present_match",
        string: StringMatcher = "string_match",
        invert: Option<bool> = "invert_match",
    }
    pub struct StringMatcher {
        exact: Option<String> = "exact",
        prefix: Option<String> = "prefix",
        suffix: Option<String> = "suffix",
        contains: Option<String> = "contains",
        regex: Option<Regex> = "safe_regex",
        ignore_case: Option<bool> = "ignore_case",
    }
    pub struct Regex {
        regex: String = "regex" required,
        engine: Opaque = "google_re2",
    }
}

/// What requests are counted by.
pub(super) fn shared(written: &[RateLimitEntry], at: &str, faults: &mut Vec<Fault>) -> Vec<Arc<Counted>> {
    written.iter().filter_map(|one| one.counted(at, faults)).map(Arc::new).collect()
}

impl RateLimitEntry {
    fn counted(&self, at: &str, faults: &mut Vec<Fault>) -> Option<Counted> {
        let actions = self.actions.iter().map(|action| action.read().map_err(|why| (action.span, why)));
        let (span, why) = match actions.collect::<Result<Vec<_>, _>>() {
            Ok(actions) if !actions.is_empty() => return Some(Counted::by(actions)),
            Ok(_) => (self.span, "rate_limits without actions"),
            Err(fault) => fault,
        };
        faults.push((span, at.to_owned(), why.to_owned()));
        None
    }
}

impl Action {
    /// What it does.
    ///
    /// # Errors
    /// What of it is not known here.
    fn read(&self) -> Result<DescriptorAction, &'static str> {
        let Action {
            request_headers,
            query_parameters,
            remote_address,
            destination_cluster,
            generic_key,
            header_value_match,
            ..
        } = self;
        // As in protobuf, what is empty is not said.
        let key = |key: &Option<String>, default: &str| {
            Arc::from(key.as_deref().filter(|key| !key.is_empty()).unwrap_or(default))
        };
        let mut found = Vec::new();
        if let Some(header) = request_headers {
            let action = |name| DescriptorAction::Header {
                key: header.descriptor_key.as_str().into(),
                name,
                skip_if_absent: header.skip_if_absent.unwrap_or(false),
            };
            let name = named(&header.header_name);
            found.push(name.and_then(|name| filled(&header.descriptor_key).map(|()| action(name))));
        }
        if let Some(query) = query_parameters {
            let action = DescriptorAction::Query {
                key: query.descriptor_key.as_str().into(),
                name: query.name.as_str().into(),
                skip_if_absent: query.skip_if_absent.unwrap_or(false),
            };
            found.push(filled(&query.name).and(filled(&query.descriptor_key)).map(|()| action));
        }
        found.extend(remote_address.as_ref().map(|_| Ok(DescriptorAction::RemoteAddress)));
        // Of a request that comes in, that is a name of the proxy's, which nobody has here.
        found.extend(
            destination_cluster.as_ref().map(|_| Err("destination_cluster, which a request that comes in has none of")),
        );
        if let Some(constant) = generic_key {
            let action = DescriptorAction::Constant {
                key: key(&constant.descriptor_key, "generic_key"),
                value: constant.descriptor_value.as_str().into(),
            };
            found.push(filled(&constant.descriptor_value).map(|()| action));
        }
        if let Some(matched) = header_value_match {
            let tests: Result<Vec<_>, _> = matched.headers.iter().map(HeaderMatcher::read).collect();
            let tests = tests.and_then(|tests| match tests.is_empty() {
                true => Err("header_value_match without headers"),
                false => Ok(tests),
            });
            let tests = filled(&matched.descriptor_value).and(tests);
            found.push(tests.map(|tests| DescriptorAction::HeaderMatch {
                key: key(&matched.descriptor_key, "header_match"),
                value: matched.descriptor_value.as_str().into(),
                expects: matched.expect_match.unwrap_or(true),
                tests,
            }));
        }
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => only,
            (Some(_), false) => Err("two actions in one item of the list"),
            (None, _) => Err("an action that is not known here"),
        }
    }
}

/// Whether something is said: the data plane takes nothing that is empty.
fn filled(text: &str) -> Result<(), &'static str> {
    if text.is_empty() { Err("an empty name, key or value") } else { Ok(()) }
}

/// The name of a header that requests may have.
fn named(name: &str) -> Result<Arc<str>, &'static str> {
    header_name(name).map_err(|_| "what is no name of a header")
}

impl HeaderMatcher {
    fn read(&self) -> Result<HeaderTest, &'static str> {
        type Make = fn(String, bool) -> StringTest;
        let exact: Make = |value, ignore_case| StringTest::Exact { value, ignore_case };
        let prefix: Make = |value, ignore_case| StringTest::Prefix { value, ignore_case };
        let suffix: Make = |value, ignore_case| StringTest::Suffix { value, ignore_case };
        let contains: Make = |value, ignore_case| StringTest::Contains { value, ignore_case };
        let string = &self.string;
        let ignore_case = string.ignore_case.unwrap_or(false);
        let parts = [
            (&self.prefix, prefix, false),
            (&self.suffix, suffix, false),
            (&self.contains, contains, false),
            (&string.prefix, prefix, ignore_case),
            (&string.suffix, suffix, ignore_case),
            (&string.contains, contains, ignore_case),
        ];
        let whole = [(&self.exact, false), (&string.exact, ignore_case)];
        let whole = whole.into_iter().filter_map(|(text, ignore_case)| Some(Ok(exact(text.clone()?, ignore_case))));
        let parts = parts.into_iter().filter_map(|(text, make, ignore_case)| {
            let text = text.clone()?;
            Some(filled(&text).map(|()| make(text, ignore_case)))
        });
        let regexes = [&self.regex, &string.regex].into_iter().flatten().map(|written| {
            let regex = FullRegex::new(&written.regex).map(StringTest::Regex);
            regex.map_err(|_| "what is no expression of RE2")
        });
        let mut tests: Vec<_> = whole.chain(parts).chain(regexes).collect();
        let name = named(&self.name)?;
        let invert = self.invert.unwrap_or(false);
        match (tests.pop(), tests.is_empty(), self.present) {
            (None, _, None) => Err("a header matcher that says no match"),
            (None, _, Some(present)) => Ok(HeaderTest::Present { name, present: present != invert }),
            (Some(test), true, None) => Ok(HeaderTest::Value { name, test: test?, invert, missing_is_empty: false }),
            (Some(_), _, _) => Err("two matches in one header matcher, of which one would not count"),
        }
    }
}
