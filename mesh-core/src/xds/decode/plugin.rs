//! Filters of the application's own of which the control plane says what becomes of requests where they cannot run.
//!
//! They are what all own filters are, a `TypedStruct` of the type under which the filter is registered, with one field more. It
//! keeps a listener from being refused for want of a filter: what else the listener says, and who is let in is a part of it,
//! comes into force whatever becomes of the filter.

use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::common::{TypedStruct, parse};
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{FilterConfig, OnFailure, Plugin};

/// What stands in a `TypedStruct` besides its type and its value, for this library alone.
#[derive(Clone, PartialEq, Message)]
pub struct PluginBesides {
    /// What becomes of requests where the filter cannot run: 1 they are refused, 2 they pass, 3 they are refused and the filter
    /// is made anew. Without it the listener is refused.
    #[prost(uint32, tag = "1000")]
    pub on_failure: u32,
}

impl From<OnFailure> for PluginBesides {
    fn from(on_failure: OnFailure) -> Self {
        let on_failure = match on_failure {
            OnFailure::Refuse => 1,
            OnFailure::Pass => 2,
            OnFailure::Restart => 3,
        };
        PluginBesides { on_failure }
    }
}

/// The filter, if it is one of these.
pub(super) fn plugin(notes: &mut Notes<'_>, any: &Any, custom: &TypedStruct) -> Result<Option<FilterConfig>, Invalid> {
    let on_failure = match parse::<PluginBesides>(&any.value)?.on_failure {
        0 => return Ok(None),
        2 => OnFailure::Pass,
        3 => OnFailure::Restart,
        _ => OnFailure::Refuse,
    };
    let name = custom.type_url.strip_prefix("type.googleapis.com/").unwrap_or(&custom.type_url);
    let plugin = Plugin { on_failure, ..Plugin::new(name, custom.json()?) };
    if let Err(why) = notes.options.custom_filters.try_out(&plugin) {
        let else_what = if on_failure == OnFailure::Pass { "pass without it" } else { "are refused" };
        notes.ignore(&format!("({why}: it goes on as it was before, or else requests {else_what})"));
    }
    Ok(Some(FilterConfig::Plugin(Arc::new(plugin))))
}
