//! Envoy's protocol of authorization over gRPC (`envoy.service.auth.v3`): a question and an answer in bytes.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::google::protobuf::Timestamp;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, StatusCode, Version};
use prost::Message;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::authz::Connection;
use crate::authz::external::{Answer, Asker, CheckedChanges, Denial, PARTIAL_BODY, settable};
use crate::model::{HeaderChange, HeaderText};
use crate::request::RequestHead;

/// The path of the call.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A question about a request: a `CheckRequest`.
#[derive(Clone, Debug)]
pub struct GrpcQuestion(pb::CheckRequest);

impl GrpcQuestion {
    /// Shows the first bytes of the request's body, and says whether they are not all. As text, what is no UTF-8 is replaced.
    pub fn show(&mut self, body: &Bytes, is_partial: bool, as_bytes: bool) {
        let attributes = self.0.attributes.get_or_insert_default();
        let http = attributes.request.get_or_insert_default().http.get_or_insert_default();
        match as_bytes {
            true => http.raw_body = body.to_vec(),
            false => http.body = String::from_utf8_lossy(body).into_owned(),
        }
        http.headers.insert(PARTIAL_BODY.to_owned(), is_partial.to_string());
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }
}

/// The question about a request, without its body.
pub fn grpc_question(
    asker: &Asker,
    head: &RequestHead<'_>,
    version: Version,
    connection: Option<&Connection<'_>>,
    now: SystemTime,
) -> GrpcQuestion {
    let mut headers: HashMap<String, String> = HashMap::new();
    let mut add = |name: &str, value: &[u8]| {
        let value = String::from_utf8_lossy(value);
        // Several values are one, as everywhere in HTTP (RFC 9110, 5.3).
        let joined = headers.entry(name.to_owned()).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&value);
    };
    for (name, value) in [
        (":method", head.method.as_str()),
        (":path", head.path_and_query),
        (":authority", head.authority),
        (":scheme", head.scheme),
    ] {
        add(name, value.as_bytes());
    }
    for (name, value) in head.headers.iter().filter(|(name, _)| asker.is_shown(name)) {
        add(name.as_str(), value.as_bytes());
    }
    let size = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let http = HttpRequest {
        method: head.method.to_string(),
        headers,
        path: head.path_and_query.to_owned(),
        host: head.authority.to_owned(),
        scheme: head.scheme.to_owned(),
        size: size.unwrap_or(-1),
        protocol: format!("{version:?}").replace("/2.0", "/2"),
        ..HttpRequest::default()
    };
    let time = timestamp(now);
    let peer = |address: SocketAddr, principal: Option<&str>| Peer {
        address: Some(core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: address.ip().to_string(),
                port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
                ..core::SocketAddress::default()
            })),
        }),
        principal: principal.unwrap_or_default().to_owned(),
        ..Peer::default()
    };
    let attributes = pb::AttributeContext {
        source: connection.map(|it| peer(it.remote, it.peer.map(|id| id.as_str()))),
        destination: connection.map(|it| peer(it.destination, None)),
        request: Some(Request { time: Some(time), http: Some(http) }),
        ..pb::AttributeContext::default()
    };
    GrpcQuestion(pb::CheckRequest { attributes: Some(attributes) })
}

/// A moment in the words of Protobuf.
pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// What an answer means, a `CheckResponse`.
///
/// # Errors
/// It is no answer: malformed, or it asks for what cannot be done.
pub fn grpc_answer(bytes: &[u8]) -> Result<Answer, String> {
    let malformed = |error: prost::DecodeError| format!("the authorizer's answer is malformed: {error}");
    let answer = pb::CheckResponse::decode(bytes).map_err(malformed)?;
    // A field that is not known here may ask for what is not done.
    if answer.encoded_len() != bytes.len() {
        return Err("the authorizer's answer has a field that is not known here".to_owned());
    }
    // Metadata is for other filters of Envoy's.
    let pb::CheckResponse { status, dynamic_metadata: _, http_response } = answer;
    let status = status.ok_or("the authorizer's answer has no status")?;
    match (status.code, http_response) {
        (0, None) => Ok(Answer::Allow(CheckedChanges::default())),
        (0, Some(HttpResponse::OkResponse(ok))) => allowed(ok).map(Answer::Allow),
        (0, Some(_)) => Err("the authorizer's answer lets in and refuses".to_owned()),
        (_, Some(HttpResponse::DeniedResponse(denied))) => Ok(Answer::Deny(refused(denied)?)),
        (_, Some(HttpResponse::ErrorResponse(_))) => Err(format!("the authorizer failed: {}", status.message)),
        (_, None | Some(HttpResponse::OkResponse(_))) => Ok(Answer::Deny(Denial::new(StatusCode::FORBIDDEN))),
    }
}

fn allowed(ok: pb::OkHttpResponse) -> Result<CheckedChanges, String> {
    if !ok.query_parameters_to_set.is_empty() || !ok.query_parameters_to_remove.is_empty() {
        return Err("the authorizer changes query parameters, which is not supported".to_owned());
    }
    let mut changes = CheckedChanges::default();
    for name in ok.headers_to_remove {
        let (name, _) = settable(&name, b"")?;
        changes.request.push(HeaderChange::Remove(name));
    }
    for option in ok.headers {
        changes.request.push(change(option)?);
    }
    for option in ok.response_headers_to_add {
        changes.response.push(change(option)?);
    }
    Ok(changes)
}

fn refused(denied: pb::DeniedHttpResponse) -> Result<Denial, String> {
    let code = denied.status.map_or(0, |status| status.code);
    // Without a status it is Envoy's default; one that is no refusal would say that something was done.
    let status = u16::try_from(code).ok().filter(|code| (300..=599).contains(code));
    let status = status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FORBIDDEN);
    let mut denial = Denial { body: Bytes::from(denied.body), ..Denial::new(status) };
    for option in denied.headers {
        // It refuses, whatever else it says.
        if let Ok((name, value, _)) = header(option) {
            denial.headers.append(name, value);
        }
    }
    Ok(denial)
}

/// The change that one of them asks for.
pub(super) fn change(option: core::HeaderValueOption) -> Result<HeaderChange, String> {
    let (name, value, action) = header(option)?;
    let value = HeaderText::Fixed(value);
    Ok(match action {
        Some(HeaderAppendAction::AppendIfExistsOrAdd) => HeaderChange::Append(name, value),
        Some(HeaderAppendAction::AddIfAbsent) => HeaderChange::AddIfAbsent(name, value),
        Some(HeaderAppendAction::OverwriteIfExists) => HeaderChange::ReplaceIfPresent(name, value),
        // What is said of how is nothing: the authorizer's word takes the place of the client's.
        Some(HeaderAppendAction::OverwriteIfExistsOrAdd) | None => HeaderChange::Set(name, value),
    })
}

#[expect(deprecated, reason = "authorizers say it so")]
fn header(
    option: core::HeaderValueOption,
) -> Result<(HeaderName, http::HeaderValue, Option<HeaderAppendAction>), String> {
    let header = option.header.unwrap_or_default();
    let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let (name, value) = settable(&header.key, value)?;
    let action = match (option.append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(append), _) if append.value => Some(HeaderAppendAction::AppendIfExistsOrAdd),
        // Appending is what protobuf says where nothing is said.
        (_, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) | (Some(_), _) => None,
        (None, Ok(action)) => Some(action),
        (None, Err(_)) => return Err("the authorizer changes headers in a way that is not known".to_owned()),
    };
    Ok((name, value, action))
}
