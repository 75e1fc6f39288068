//! What the tokens of a request say together, as expressions ask for it: two that say a thing differently leave it in doubt.

use std::borrow::Cow;

use serde_json::Value;

use super::Claims;

/// It can be read in two ways, or is not one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InDoubt;

/// A claim: a name at the top, or the names that lead to one (`a.b`).
pub(crate) fn claim<'t>(tokens: &'t [Claims], name: &str) -> Result<Option<&'t Value>, InDoubt> {
    let path: Vec<&str> = name.split('.').collect();
    same(tokens.iter().filter_map(|token| token.get(&[name]).or_else(|| token.get(&path))))
}

/// A claim that is one value, as a text.
pub(crate) fn claim_text<'t>(tokens: &'t [Claims], name: &str) -> Result<Option<Cow<'t, str>>, InDoubt> {
    match claim(tokens, name)? {
        Some(Value::String(text)) => Ok(Some(text.as_str().into())),
        Some(Value::Number(number)) => Ok(Some(number.to_string().into())),
        Some(Value::Bool(is_so)) => Ok(Some(if *is_so { "true" } else { "false" }.into())),
        // It is asked about by `in`.
        Some(Value::Array(_) | Value::Object(_)) => Err(InDoubt),
        Some(Value::Null) | None => Ok(None),
    }
}

/// Whether a claim is this, or a list with it.
pub(crate) fn claim_has(tokens: &[Claims], name: &str, item: &str) -> Result<bool, InDoubt> {
    match claim(tokens, name)? {
        Some(Value::Array(items)) => Ok(items.iter().any(|one| one.as_str() == Some(item))),
        Some(Value::String(one)) => Ok(one == item),
        Some(_) => Err(InDoubt),
        None => Ok(false),
    }
}

/// Issuer and subject, as `iss/sub`.
pub(crate) fn principal(tokens: &[Claims]) -> Result<Option<&str>, InDoubt> {
    same(tokens.iter().filter_map(Claims::principal))
}

fn same<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Result<Option<T>, InDoubt> {
    let Some(first) = all.next() else { return Ok(None) };
    if all.all(|other| other == first) { Ok(Some(first)) } else { Err(InDoubt) }
}
