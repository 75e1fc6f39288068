//! Envoy's protocol of external processing (`envoy.service.ext_proc.v3`), headers alone: a head and a word on it in bytes.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
use envoy_types::pb::envoy::service::ext_proc::v3::common_response::ResponseStatus;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use http::StatusCode;
use prost::Message;

use super::check::change;
use crate::authz::external::is_fixed;
use crate::filter::{Processed, Reply, Said, ShownHead};
use crate::model::{HeaderChange, HeaderText};

/// The path of the call.
pub const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// A head, as a `ProcessingRequest`.
pub fn encode(head: ShownHead) -> Vec<u8> {
    let ShownHead { is_response, headers, is_end } = head;
    let header = |(key, value): (String, Bytes)| core::HeaderValue {
        key,
        raw_value: value.to_vec(),
        ..core::HeaderValue::default()
    };
    let headers = pb::HttpHeaders {
        headers: Some(core::HeaderMap { headers: headers.into_iter().map(header).collect() }),
        end_of_stream: is_end,
        ..pb::HttpHeaders::default()
    };
    let request = if is_response { Request::ResponseHeaders(headers) } else { Request::RequestHeaders(headers) };
    pb::ProcessingRequest { request: Some(request), ..pb::ProcessingRequest::default() }.encode_to_vec()
}

/// What a `ProcessingResponse` says of the head of a request, or of an answer; `None` where it only wants more time, which it is not
/// given (`max_message_timeout`).
///
/// # Errors
/// It says nothing of it: malformed, or it asks for what cannot be done.
pub fn decode(bytes: &[u8], is_response: bool) -> Result<Option<Said>, String> {
    let malformed = |error: prost::DecodeError| format!("the processor's word is malformed: {error}");
    let said = pb::ProcessingResponse::decode(bytes).map_err(malformed)?;
    // A field that is not known here may ask for what is not done.
    if said.encoded_len() != bytes.len() {
        return Err("the processor's word has a field that is not known here".to_owned());
    }
    // As where Envoy's settings do not allow it.
    let besides =
        [("mode_override", said.mode_override.is_some()), ("dynamic_metadata", said.dynamic_metadata.is_some())];
    let mut passed_over = names(besides);
    let processed = match said.response {
        None if said.override_message_timeout.is_some() => return Ok(None),
        Some(Response::RequestHeaders(of)) if !is_response => passed(of, false, &mut passed_over)?,
        Some(Response::ResponseHeaders(of)) if is_response => passed(of, true, &mut passed_over)?,
        Some(Response::ImmediateResponse(answer)) => answered(answer, &mut passed_over)?,
        _ => return Err("the processor's word is on something else than it was shown".to_owned()),
    };
    Ok(Some(Said { processed, passed_over }))
}

fn names<const N: usize>(fields: [(&str, bool); N]) -> Vec<String> {
    fields.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name.to_owned()).collect()
}

fn passed(of: pb::HeadersResponse, is_response: bool, passed_over: &mut Vec<String>) -> Result<Processed, String> {
    let pb::CommonResponse { status, header_mutation, body_mutation, trailers, clear_route_cache } =
        of.response.unwrap_or_default();
    // The route was found before, and stays.
    passed_over.extend(names([("clear_route_cache", clear_route_cache)]));
    match ResponseStatus::try_from(status) {
        // A body that comes with it has no effect, as in Envoy.
        Ok(ResponseStatus::Continue) => {}
        Ok(ResponseStatus::ContinueAndReplace) if body_mutation.is_none() && trailers.is_none() => {}
        Ok(ResponseStatus::ContinueAndReplace) => {
            return Err("the processor replaces the body, which is not supported".to_owned());
        }
        Err(_) => return Err("the processor goes on in a way that is not known here".to_owned()),
    }
    let (changes, status) = changes(header_mutation.unwrap_or_default(), is_response, passed_over)?;
    Ok(Processed::Pass(changes, status))
}

fn answered(answer: pb::ImmediateResponse, passed_over: &mut Vec<String>) -> Result<Processed, String> {
    let pb::ImmediateResponse { status, headers, body, grpc_status, details } = answer;
    // As in Envoy, what is no such status is 200.
    let status = status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.filter(|code| (200..=599).contains(code)).and_then(|code| StatusCode::from_u16(code).ok());
    let mut reply = Reply::new(status.unwrap_or(StatusCode::OK), body);
    if let Some(status) = grpc_status {
        reply = reply.grpc_code(status.status);
    }
    let mut own = http::HeaderMap::new();
    for change in changes(headers.unwrap_or_default(), true, passed_over)?.0 {
        match change {
            HeaderChange::Set(name, HeaderText::Fixed(value)) => drop(own.insert(name, value)),
            HeaderChange::Append(name, HeaderText::Fixed(value)) => drop(own.append(name, value)),
            HeaderChange::AddIfAbsent(name, HeaderText::Fixed(value)) => drop(own.entry(name).or_insert(value)),
            _ => {}
        }
    }
    reply.headers = (!own.is_empty()).then(|| Box::new(own));
    Ok(Processed::Answer(reply, (!details.is_empty()).then_some(details)))
}

/// What is taken off, then what is set; and the status that an answer is to have. What no processor may change is left alone, as in
/// Envoy: who is asked for, how, and headers of the mesh and of the connection. A path would be another one than policies were asked
/// about, and is refused.
fn changes(
    mutation: pb::HeaderMutation,
    is_response: bool,
    passed_over: &mut Vec<String>,
) -> Result<(Vec<HeaderChange>, Option<StatusCode>), String> {
    let pb::HeaderMutation { set_headers, remove_headers } = mutation;
    let (mut changes, mut status) = (Vec::new(), None);
    for name in remove_headers {
        if is_changeable(&name)? {
            let name = http::HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("the processor takes off {name:?}, which is no header"))?;
            changes.push(HeaderChange::Remove(name));
        } else {
            passed_over.push(name);
        }
    }
    for option in set_headers {
        let header = option.header.clone().unwrap_or_default();
        if is_response && header.key == ":status" {
            let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
            let code = StatusCode::from_bytes(value).ok().filter(|code| (200..=599).contains(&code.as_u16()));
            status = Some(code.ok_or("the processor sets a status that is none of an answer")?);
        } else if is_changeable(&header.key)? {
            changes.push(change(option)?);
        } else {
            passed_over.push(header.key);
        }
    }
    Ok((changes, status))
}

/// Whether a processor may change a header.
fn is_changeable(name: &str) -> Result<bool, String> {
    let lower = name.to_ascii_lowercase();
    if lower == ":path" {
        return Err("the processor changes the path, which policies were asked about".to_owned());
    }
    let is_reserved = [":", "x-envoy-", "x-mesh-"].iter().any(|start| lower.starts_with(start));
    let is_fixed = http::HeaderName::from_bytes(lower.as_bytes()).is_ok_and(|name| is_fixed(&name));
    Ok(!is_reserved && !is_fixed)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::protobuf::Duration;
    use http::HeaderName;

    use super::*;

    fn set(name: &str, value: &str, action: HeaderAppendAction) -> core::HeaderValueOption {
        let header =
            core::HeaderValue { key: name.to_owned(), raw_value: value.as_bytes().to_vec(), ..Default::default() };
        core::HeaderValueOption { header: Some(header), append_action: action.into(), ..Default::default() }
    }

    fn headers(set_headers: Vec<core::HeaderValueOption>, removed: &[&str]) -> pb::CommonResponse {
        let remove_headers = removed.iter().map(|name| (*name).to_owned()).collect();
        let header_mutation = Some(pb::HeaderMutation { set_headers, remove_headers });
        pb::CommonResponse { header_mutation, ..Default::default() }
    }

    fn said(response: Response, is_response: bool) -> Result<Option<Said>, String> {
        let said = pb::ProcessingResponse { response: Some(response), ..Default::default() };
        decode(&said.encode_to_vec(), is_response)
    }

    fn on_request(common: pb::CommonResponse) -> Result<Option<Said>, String> {
        said(Response::RequestHeaders(pb::HeadersResponse { response: Some(common) }), false)
    }

    fn on_response(common: pb::CommonResponse) -> Result<Option<Said>, String> {
        said(Response::ResponseHeaders(pb::HeadersResponse { response: Some(common) }), true)
    }

    #[test]
    fn headers_change_as_for_envoy_and_what_is_not_for_a_processor_is_left_alone() {
        use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
        let name = |name: &'static str| HeaderName::from_static(name);
        let value = |value: &'static str| HeaderText::Fixed(http::HeaderValue::from_static(value));
        let mutation = headers(
            vec![
                set("a", "1", OverwriteIfExistsOrAdd),
                // What protobuf says where nothing is said.
                set("B", "2", AppendIfExistsOrAdd),
                set("c", "3", AddIfAbsent),
                set("d", "4", OverwriteIfExists),
                set("host", "other", OverwriteIfExistsOrAdd),
                set(":authority", "other", OverwriteIfExistsOrAdd),
                set(":method", "PUT", OverwriteIfExistsOrAdd),
                set("x-envoy-retry-on", "5xx", OverwriteIfExistsOrAdd),
                set("content-length", "0", OverwriteIfExistsOrAdd),
            ],
            &["e", "x-mesh-criticality"],
        );
        let expected = vec![
            HeaderChange::Remove(name("e")),
            HeaderChange::Set(name("a"), value("1")),
            HeaderChange::Set(name("b"), value("2")),
            HeaderChange::AddIfAbsent(name("c"), value("3")),
            HeaderChange::ReplaceIfPresent(name("d"), value("4")),
        ];
        let passed_over = ["x-mesh-criticality", "host", ":authority", ":method", "x-envoy-retry-on", "content-length"];
        let passed_over = passed_over.map(str::to_owned).to_vec();
        assert_eq!(on_request(mutation), Ok(Some(Said { processed: Processed::Pass(expected, None), passed_over })));
        let status = headers(vec![set(":status", "404", OverwriteIfExistsOrAdd)], &[]);
        assert_eq!(on_response(status), Ok(Some(Processed::Pass(Vec::new(), Some(StatusCode::NOT_FOUND)).into())));
    }

    #[test]
    fn an_answer_of_its_own_is_told_as_it_is() {
        let answer = pb::ImmediateResponse {
            status: Some(HttpStatus { code: 401 }),
            headers: headers(vec![set("www-authenticate", "Basic", HeaderAppendAction::OverwriteIfExistsOrAdd)], &[])
                .header_mutation,
            body: b"who are you?".to_vec(),
            grpc_status: Some(pb::GrpcStatus { status: 16 }),
            details: "nobody".to_owned(),
        };
        let mut reply = Reply::new(StatusCode::UNAUTHORIZED, &b"who are you?"[..]).grpc_code(16);
        let own = [(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Basic"))];
        reply.headers = Some(Box::new(http::HeaderMap::from_iter(own)));
        let expected = Processed::Answer(reply, Some("nobody".to_owned()));
        assert_eq!(said(Response::ImmediateResponse(answer), true), Ok(Some(expected.into())));
        let none = pb::ImmediateResponse { status: Some(HttpStatus { code: 100 }), ..Default::default() };
        let ok = Processed::Answer(Reply::new(StatusCode::OK, Bytes::new()), None);
        assert_eq!(said(Response::ImmediateResponse(none), false), Ok(Some(ok.into())));
    }

    #[test]
    fn what_cannot_be_done_is_no_word_on_it() {
        let set_path = headers(vec![set(":path", "/admin", HeaderAppendAction::OverwriteIfExistsOrAdd)], &[]);
        let replace = |body_mutation| pb::CommonResponse {
            status: ResponseStatus::ContinueAndReplace.into(),
            body_mutation,
            ..Default::default()
        };
        let bad = |name: &str| headers(vec![set(name, "x", HeaderAppendAction::OverwriteIfExistsOrAdd)], &[]);
        let status = |code: &str| headers(vec![set(":status", code, HeaderAppendAction::OverwriteIfExistsOrAdd)], &[]);
        for (found, expected) in [
            (on_request(set_path), "the path"),
            (on_request(replace(Some(pb::BodyMutation::default()))), "the body"),
            (on_request(pb::CommonResponse { status: 7, ..Default::default() }), "not known"),
            (on_request(bad("a b")), "a b"),
            (on_request(headers(Vec::new(), &["a b"])), "a b"),
            (on_response(status("100")), "status"),
            (on_response(status("x")), "status"),
            (said(Response::ResponseHeaders(pb::HeadersResponse::default()), false), "something else"),
            (said(Response::RequestBody(pb::BodyResponse::default()), false), "something else"),
            (decode(&[0xff], false), "malformed"),
            (decode(&[0xfa, 0x7f, 0], false), "not known"),
            (decode(&[], false), "something else"),
        ] {
            let found = found.unwrap_err();
            assert!(found.contains(expected), "{expected}: {found}");
        }
        assert_eq!(on_request(replace(None)), Ok(Some(Processed::Pass(Vec::new(), None).into())));
        let mode = pb::ProcessingResponse {
            response: Some(Response::RequestHeaders(pb::HeadersResponse {
                response: Some(pb::CommonResponse { clear_route_cache: true, ..Default::default() }),
            })),
            mode_override: Some(Default::default()),
            ..Default::default()
        };
        let passed_over = vec!["mode_override".to_owned(), "clear_route_cache".to_owned()];
        let expected = Said { processed: Processed::Pass(Vec::new(), None), passed_over };
        assert_eq!(decode(&mode.encode_to_vec(), false), Ok(Some(expected)), "and it is told");
        let later = pb::ProcessingResponse {
            override_message_timeout: Some(Duration { seconds: 9, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(decode(&later.encode_to_vec(), false), Ok(None));
    }
}
