//! Rules on requests, which are our own: a `TypedStruct` with a list of them. The control plane reads an object's rules by the
//! same function.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use http::StatusCode;
use serde_json::{Map, Value};

use super::headers::{self, Lists};
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{CelExpression, Refusal, RequestRule, RequestRules};
use crate::xds::decode::Options;

/// The rules of a filter.
pub(super) fn request_rules(json: &str) -> Result<RequestRules, Invalid> {
    let value: Value = serde_json::from_str(json).map_err(|why| Invalid::new(why.to_string()))?;
    let rules = value.get("rules").and_then(Value::as_array).ok_or_else(|| Invalid::new("missing").at("rules"))?;
    let read = rules.iter().enumerate();
    let read = read.map(|(index, rule)| request_rule(rule).map_err(|why| why.at(format!("rules[{index}]"))));
    Ok(RequestRules::new(read.collect::<Result<_, _>>()?))
}

/// One rule: `{name, when, allow, deny: {status, body}, request: {set, remove}, response: {set, remove}}`.
///
/// # Errors
/// The field that is wrong, and why: an expression with its line and column.
///
/// ```
/// use mesh_core::xds::decode::request_rule;
/// use serde_json::json;
///
/// let rule = json!({"name": "admins", "when": "request.url_path.startsWith('/admin')", "deny": {"status": 403}});
/// assert!(request_rule(&rule).is_ok());
/// let invalid = request_rule(&json!({"name": "a", "when": "request.pth == ''", "deny": {}})).unwrap_err();
/// assert_eq!(invalid.field, "when");
/// ```
pub fn request_rule(json: &Value) -> Result<RequestRule, Invalid> {
    let fields = json.as_object().ok_or_else(|| Invalid::new("an object is expected"))?;
    known(fields, &["name", "when", "allow", "deny", "request", "response"])?;
    let mut rule = RequestRule::new(text(fields, "name")?.unwrap_or_default());
    if let Some(when) = text(fields, "when")? {
        let read = CelExpression::rule(when).map_err(|fault| Invalid::new(fault.to_string()).at("when"))?;
        rule.when = Some(read);
    }
    rule.allow = match fields.get("allow") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) if rule.when.as_ref().is_some_and(|when| when.always() != Some(true)) => true,
        Some(Value::Bool(true)) => {
            return Err(Invalid::new("without a condition, no rule after it would be asked").at("allow"));
        }
        Some(_) => return Err(Invalid::new("true or false is expected").at("allow")),
    };
    if let Some(deny) = object(fields, "deny")? {
        rule.deny = Some(refusal(deny).map_err(|invalid| invalid.at("deny"))?);
    }
    let of = |side: &str| changes(object(fields, side)?).map_err(|invalid: Invalid| invalid.at(side.to_owned()));
    let (request_set, request_removed) = of("request")?;
    let (response_set, response_removed) = of("response")?;
    let options = Options::default();
    let lists = Lists {
        request_headers_to_add: request_set,
        request_headers_to_remove: request_removed,
        response_headers_to_add: response_set,
        response_headers_to_remove: response_removed,
    };
    let mutations = headers::mutations(&mut Notes::new(&options), lists)
        .map_err(|invalid| Invalid::new(invalid.reason).at("headers"))?;
    rule.request = mutations.request;
    rule.response = Arc::from(mutations.response);
    let changes_nothing = rule.request.is_empty() && rule.response.is_empty();
    if rule.looks_at_answer() && (rule.allow || rule.deny.is_some() || !rule.request.is_empty()) {
        let reason = "is about the answer, which there is none of yet when a request is let in, refused or changed";
        return Err(Invalid::new(reason).at("when"));
    }
    if rule.allow && rule.deny.is_some() {
        return Err(Invalid::new("who is refused does not pass").at("deny"));
    }
    match (&rule.deny, changes_nothing) {
        (None, true) if rule.allow => Ok(rule),
        (None, true) => Err(Invalid::new("nothing becomes of the requests that it is for").at("deny")),
        (Some(_), false) => Err(Invalid::new("who is refused has no other headers").at("deny")),
        _ => Ok(rule),
    }
}

fn known(fields: &Map<String, Value>, known: &[&str]) -> Result<(), Invalid> {
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => Err(Invalid::new("unknown field").at(unknown.clone())),
        None => Ok(()),
    }
}

fn text<'j>(fields: &'j Map<String, Value>, name: &str) -> Result<Option<&'j str>, Invalid> {
    let text = |value: &'j Value| value.as_str().ok_or_else(|| Invalid::new("a text is expected").at(name.to_owned()));
    fields.get(name).map(text).transpose()
}

fn object<'j>(fields: &'j Map<String, Value>, name: &str) -> Result<Option<&'j Map<String, Value>>, Invalid> {
    let object =
        |value: &'j Value| value.as_object().ok_or_else(|| Invalid::new("an object is expected").at(name.to_owned()));
    fields.get(name).map(object).transpose()
}

fn refusal(fields: &Map<String, Value>) -> Result<Refusal, Invalid> {
    known(fields, &["status", "body"])?;
    let status = match fields.get("status") {
        None => StatusCode::FORBIDDEN,
        Some(value) => {
            let code =
                value.as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| (400..=599).contains(code));
            let status = code.and_then(|code| StatusCode::from_u16(code).ok());
            status.ok_or_else(|| Invalid::new(format!("{value} is not a status from 400 to 599")).at("status"))?
        }
    };
    Ok(Refusal::new(status, text(fields, "body")?.unwrap_or("refused by a rule").to_owned()))
}

/// What is set, and what is taken off.
type Changes = (Vec<core::HeaderValueOption>, Vec<String>);

fn changes(fields: Option<&Map<String, Value>>) -> Result<Changes, Invalid> {
    let Some(fields) = fields else { return Ok(Changes::default()) };
    known(fields, &["set", "remove"])?;
    let set = object(fields, "set")?.into_iter().flatten().map(|(name, value)| {
        let value = value.as_str().ok_or_else(|| Invalid::new("a text is expected").at(format!("set[{name}]")))?;
        let header = core::HeaderValue { key: name.clone(), value: value.to_owned(), ..Default::default() };
        Ok(core::HeaderValueOption {
            header: Some(header),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            keep_empty_value: true,
            ..Default::default()
        })
    });
    let removed = fields
        .get("remove")
        .map(|names| names.as_array().ok_or_else(|| Invalid::new("a list is expected").at("remove")));
    let removed = removed.transpose()?.into_iter().flatten();
    let removed = removed
        .map(|name| name.as_str().map(str::to_owned).ok_or_else(|| Invalid::new("a text is expected").at("remove")));
    Ok((set.collect::<Result<_, Invalid>>()?, removed.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_off_is_a_list_of_names() {
        for (removed, expected) in [
            (serde_json::json!("x-debug"), Some("a list is expected")),
            (serde_json::json!([1]), Some("a text is expected")),
            (serde_json::json!(["x-debug"]), None),
        ] {
            let rule = serde_json::json!({"name": "a", "request": {"set": {"a": "b"}, "remove": removed}});
            let wrong = request_rule(&rule).err();
            assert_eq!(wrong.as_ref().map(|invalid| &*invalid.reason), expected, "{rule}");
            assert!(wrong.is_none_or(|invalid| invalid.field == "request.remove"), "{rule}");
        }
    }
}
