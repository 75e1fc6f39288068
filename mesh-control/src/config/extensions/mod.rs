//! Settings of our own, which Istio has no field for: annotations that begin with `mesh-control/`, on the objects that they
//! belong to (docs/extensions.md).
//!
//! One line of the table below, a type that is read from text, a row in `config/support/extensions.rs` and a section of the
//! document make one. An annotation of ours that is not in the table, or not for its kind of object, is an error.

mod coalesce;
mod endpoint_subset;
pub mod envoy_filter;
mod fallback;
pub mod filter_schema;
mod health_check;
mod hedge;
pub mod json_schema;
mod load_balancer;
pub mod overload;
mod pairs;
pub mod quota;
pub mod rate_limit;
pub mod rate_limit_service;
pub mod request_rules;
mod sticky_split;

pub use coalesce::Coalesce;
pub use endpoint_subset::EndpointSubset;
pub use fallback::Fallback;
pub use health_check::{HealthCheck, Probe};
pub use hedge::Hedge;
pub use load_balancer::LoadBalancer;
pub use pairs::Pairs;
pub use sticky_split::StickySplit;

use super::decode::Decoder;
use super::diagnostic::{Code, Severity, quoted};
use super::node::Node;
use super::spelling::nearest;
use super::support::{self, ObjectKind, Support};

/// What the keys begin with.
pub const PREFIX: &str = "mesh-control/";

/// The table: where a setting is kept, its type (`FromStr`, whose error says what is wrong), its key, the kinds of object
/// that it belongs to.
macro_rules! extensions {
    ($($(#[$doc:meta])* $field:ident: $ty:ty = $key:literal of $($kind:ident)|+,)*) => {
        /// What the annotations of one object say.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Extensions {
            $($(#[$doc])* pub $field: Option<$ty>,)*
        }

        /// Each key, and the kinds of object that it belongs to.
        pub const KEYS: &[(&str, &[ObjectKind])] = &[$(($key, &[$(ObjectKind::$kind),+]),)*];

        impl Extensions {
            fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
                match key {
                    $($key => self.$field = Some(text.parse()?),)*
                    _ => return Err("not in the table".to_owned()),
                }
                Ok(())
            }

            /// Takes from a later object what is not said here. Returns the keys of which both say something.
            pub fn merge(&mut self, later: Extensions) -> Vec<&'static str> {
                let mut both = Vec::new();
                $(match (&self.$field, later.$field) {
                    (Some(_), Some(_)) => both.push($key),
                    (None, later) => self.$field = later,
                    (Some(_), None) => {}
                })*
                both
            }
        }
    };
}

extensions! {
    /// Whether requests are hedged.
    hedge: Hedge = "mesh-control/hedge" of VirtualService,
    /// How many endpoints each client calls.
    endpoint_subset: EndpointSubset = "mesh-control/endpoint-subset" of DestinationRule,
    /// How clients ask endpoints whether they are well.
    health_check: HealthCheck = "mesh-control/health-check" of DestinationRule,
    /// A policy that Istio has no name for.
    load_balancer: LoadBalancer = "mesh-control/load-balancer" of DestinationRule,
    /// What a weighted split goes by.
    sticky_split: StickySplit = "mesh-control/sticky-split" of VirtualService,
    /// Identical requests that are under way at the same time are one.
    coalesce: Coalesce = "mesh-control/coalesce" of VirtualService,
    /// Who answers where the service has nothing healthy.
    fallback: Fallback = "mesh-control/fallback" of DestinationRule,
}

/// Reads those of an object from its `metadata`.
pub fn read(kind: ObjectKind, metadata: &Node, d: &mut Decoder<'_>) -> Extensions {
    let mut extensions = Extensions::default();
    let entries = metadata.get("annotations").map(Node::entries).unwrap_or_default();
    for (key, value) in entries.iter().filter(|(key, _)| key.name.starts_with(PREFIX)) {
        let field = format!("metadata.annotations.{}", quoted(&key.name).trim_matches('`'));
        let mut error = |span, code, istio, message: String| {
            d.report_at(span, field.clone(), Severity::Error, code, message);
            d.amend(|finding| finding.istio(istio));
        };
        match KEYS.iter().find(|(known, _)| *known == key.name) {
            None => error(key.span, Code::UnknownField, "IST0108", unknown(&key.name, kind)),
            Some((_, kinds)) if !kinds.contains(&kind) => {
                error(key.span, Code::UnknownField, "IST0107", belongs_to(kinds));
            }
            // What is no text was told of with the other annotations.
            Some((known, _)) => {
                let Some(text) = value.as_str() else { continue };
                if let Err(message) = extensions.set(known, text.trim()) {
                    error(value.span, Code::InvalidValue, "IST0125", message);
                } else if let Some(Support::NotYet(instead)) = support::annotation(known).map(|row| row.library) {
                    let message = format!("not supported yet: {instead}");
                    d.report_at(key.span, field, Severity::Warning, Code::NotSupportedYet, message);
                }
            }
        }
    }
    extensions
}

fn belongs_to(kinds: &[ObjectKind]) -> String {
    let kinds: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    format!("belongs to a {}", kinds.join(" or a "))
}

fn unknown(key: &str, kind: ObjectKind) -> String {
    let all: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    // The prefix is no part of what may be mistyped: it would make every two keys alike.
    let name = |key: &'static str| key.strip_prefix(PREFIX).unwrap_or(key);
    let names: Vec<&str> = KEYS.iter().map(|(key, _)| name(key)).collect();
    if let Some(near) = nearest(key.strip_prefix(PREFIX).unwrap_or(key), &names) {
        let near = format!("{PREFIX}{near}");
        let kinds = KEYS.iter().find(|(known, _)| *known == near).map(|(_, kinds)| *kinds).unwrap_or_default();
        return match kinds.contains(&kind) {
            true => format!("unknown annotation; did you mean `{near}`?"),
            false => format!("unknown annotation; `{near}` {}", belongs_to(kinds)),
        };
    }
    let own = KEYS.iter().filter(|(_, kinds)| kinds.contains(&kind)).map(|(key, _)| *key);
    let own: Vec<&str> = own.collect();
    match own.is_empty() {
        true => format!("unknown annotation: there are {}, and none for a {}", all.join(", "), kind.name()),
        false => format!("unknown annotation: a {} may have {}", kind.name(), own.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_row_and_every_row_a_key() {
        for (key, kinds) in KEYS {
            assert!(key.starts_with(PREFIX) && !kinds.is_empty(), "{key}");
            assert!(support::annotation(key).is_some(), "{key} has no row");
        }
        for row in support::ANNOTATIONS {
            assert!(KEYS.iter().any(|(key, _)| *key == row.path), "{} is no key", row.path);
        }
    }

    #[test]
    fn what_the_first_object_says_counts() {
        let split = |text: &str| Extensions { sticky_split: Some(text.parse().unwrap()), ..Extensions::default() };
        let mut merged = Extensions::default();
        assert!(merged.merge(split("header=a")).is_empty());
        assert_eq!(merged.merge(split("header=b")), ["mesh-control/sticky-split"]);
        assert!(merged.merge(Extensions::default()).is_empty());
        assert_eq!(merged, split("header=a"));
    }
}
