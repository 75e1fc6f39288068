//! Changes to headers (`envoy.config.core.v3.HeaderValueOption`).

use envoy_types::pb::envoy::config::core::v3 as core;
use http::{HeaderName, HeaderValue};

use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{HeaderChange, HeaderMutations, HeaderTarget, HeaderText};

/// The four lists that routes, virtual hosts and weighted clusters all have, and limits one or two of.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) request_headers_to_add: Vec<core::HeaderValueOption>,
    pub(super) request_headers_to_remove: Vec<String>,
    pub(super) response_headers_to_add: Vec<core::HeaderValueOption>,
    pub(super) response_headers_to_remove: Vec<String>,
}

impl Lists {
    fn are_empty(&self) -> bool {
        self.request_headers_to_add.is_empty()
            && self.request_headers_to_remove.is_empty()
            && self.response_headers_to_add.is_empty()
            && self.response_headers_to_remove.is_empty()
    }
}

/// What the lists ask for. As in Envoy, removals come first, then what is overwritten, then what is added, wherever they stand: a
/// header that is removed and added is there, and one that is added and set has both values.
pub(super) fn mutations(notes: &mut Notes<'_>, lists: Lists) -> Result<HeaderMutations, Invalid> {
    // As of most of thousands of routes.
    if lists.are_empty() {
        return Ok(HeaderMutations::default());
    }
    let mut request = notes.each("request_headers_to_remove", lists.request_headers_to_remove, remove)?;
    let add_to = |target| move |_: &mut Notes<'_>, option| add(option, target);
    let added = notes.each("request_headers_to_add", lists.request_headers_to_add, add_to(HeaderTarget::Request))?;
    request.extend(added.into_iter().flatten());
    let mut response = notes.each("response_headers_to_remove", lists.response_headers_to_remove, remove)?;
    let added = notes.each("response_headers_to_add", lists.response_headers_to_add, add_to(HeaderTarget::Response))?;
    response.extend(added.into_iter().flatten());
    let order = |change: &HeaderChange| match change {
        HeaderChange::Remove(_) => 0,
        HeaderChange::Set(..) | HeaderChange::ReplaceIfPresent(..) => 1,
        HeaderChange::Append(..) | HeaderChange::AddIfAbsent(..) => 2,
    };
    request.sort_by_key(order);
    response.sort_by_key(order);
    Ok(HeaderMutations { request, response })
}

fn remove(_: &mut Notes<'_>, name: String) -> Result<HeaderChange, Invalid> {
    Ok(HeaderChange::Remove(changeable(&name)?))
}

/// `None` where the value is empty and empty values are not kept.
fn add(option: core::HeaderValueOption, target: HeaderTarget) -> Result<Option<HeaderChange>, Invalid> {
    use core::header_value_option::HeaderAppendAction;
    let core::HeaderValueOption { header, append, append_action, keep_empty_value } = option;
    let header = header.ok_or_else(|| Invalid::new("missing").at("header"))?;
    let name = changeable(&header.key).map_err(|invalid| invalid.at("header.key"))?;
    let raw = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let value = HeaderText::parse(raw, target, keep_empty_value).map_err(|invalid| invalid.at("header.value"))?;
    if matches!(&value, HeaderText::Fixed(value) if value.is_empty()) && !keep_empty_value {
        return Ok(None);
    }
    let action = match append {
        Some(append) if append.value => HeaderAppendAction::AppendIfExistsOrAdd,
        Some(_) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        None => HeaderAppendAction::try_from(append_action)
            .map_err(|_| Invalid::new("not a known value").at("append_action"))?,
    };
    Ok(Some(match action {
        HeaderAppendAction::AppendIfExistsOrAdd => HeaderChange::Append(name, value),
        HeaderAppendAction::AddIfAbsent => HeaderChange::AddIfAbsent(name, value),
        HeaderAppendAction::OverwriteIfExistsOrAdd => HeaderChange::Set(name, value),
        HeaderAppendAction::OverwriteIfExists => HeaderChange::ReplaceIfPresent(name, value),
    }))
}

/// A header with a value that is made of nothing; `None` where the value is empty and empty values are not kept.
pub(super) fn fixed(option: core::HeaderValueOption) -> Result<Option<(HeaderName, HeaderValue)>, Invalid> {
    match add(option, HeaderTarget::Request)? {
        None => Ok(None),
        Some(
            HeaderChange::Append(name, HeaderText::Fixed(value))
            | HeaderChange::AddIfAbsent(name, HeaderText::Fixed(value))
            | HeaderChange::Set(name, HeaderText::Fixed(value)),
        ) => Ok(Some((name, value))),
        Some(_) => Err(Invalid::new("only a fixed value, of a header that is added, is supported").at("header")),
    }
}

/// What says how a message is framed, or is for one connection only (RFC 9110, 7.6.1). The data plane writes these itself,
/// for the connection at hand: with a value from somewhere else two peers would disagree where a message ends. Envoy would
/// take them.
const OF_THE_CONNECTION: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// The name of a header that configuration may change: Envoy keeps pseudo-headers and `host` out of reach.
///
/// # Errors
/// Why it may not.
///
/// ```
/// use mesh_core::xds::decode::changeable;
///
/// assert!(changeable("x-tenant").is_ok());
/// assert!(changeable("host").is_err() && changeable("content-length").is_err());
/// ```
pub fn changeable(name: &str) -> Result<HeaderName, Invalid> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(Invalid::new(format!("{name:?} cannot be changed")));
    }
    if OF_THE_CONNECTION.iter().any(|known| name.eq_ignore_ascii_case(known)) {
        return Err(Invalid::new(format!(
            "{name:?} cannot be changed: it belongs to a single connection, or says where a message ends"
        )));
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Invalid::new(format!("{name:?} is not a header name")))
}
