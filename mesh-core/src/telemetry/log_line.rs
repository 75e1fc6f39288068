//! One line of an access log. Whatever a client sends, it stays one entry: in a text, quotes, backslashes and control
//! characters are escaped, which Envoy's text log does not do.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};

use crate::error::GRPC_STATUSES;
use crate::model::{LogFact, LogFormat, LogHeader, LogJson, LogPart, LogText, TimeFormat, protocol};
use crate::printable::is_unseen;
use crate::request_info::{Heads, RequestInfo};

/// What one request comes to, which is written as a line with its end: whoever writes it does so in its own time.
#[derive(Clone, Debug, PartialEq)]
pub enum LogLine {
    /// A text, with its end.
    Text(String),
    /// An object of JSON.
    Json(serde_json::Map<String, serde_json::Value>),
}

impl LogLine {
    /// About how many bytes it takes: whoever makes requests makes it long.
    ///
    /// ```
    /// use mesh_core::telemetry::LogLine;
    ///
    /// assert_eq!(LogLine::Text("GET /\n".to_owned()).size(), 6);
    /// ```
    pub fn size(&self) -> usize {
        use serde_json::{Map, Value};
        fn of(value: &Value) -> usize {
            match value {
                Value::String(text) => text.len(),
                Value::Array(items) => items.iter().map(of).sum(),
                Value::Object(fields) => of_fields(fields),
                Value::Null | Value::Bool(_) | Value::Number(_) => 8,
            }
        }
        fn of_fields(fields: &Map<String, Value>) -> usize {
            fields.iter().map(|(key, value)| key.len() + of(value)).sum()
        }
        match self {
            LogLine::Text(line) => line.len(),
            LogLine::Json(fields) => of_fields(fields),
        }
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogLine::Text(line) => f.write_str(line),
            LogLine::Json(fields) => {
                f.write_str(&serde_json::to_string(fields).map_err(|_| fmt::Error)?)?;
                f.write_str("\n")
            }
        }
    }
}

/// A request that ended now.
pub fn line(format: &LogFormat, request: &RequestInfo, took: Duration, now: SystemTime) -> LogLine {
    let entry = Entry { request, heads: request.head(), took, now };
    match format {
        LogFormat::Text(text) => {
            let mut line = entry.text(text, escaped);
            if !line.ends_with('\n') {
                line.push('\n');
            }
            LogLine::Text(line)
        }
        LogFormat::Json(keys) => LogLine::Json(entry.object(keys)),
    }
}

struct Entry<'a> {
    request: &'a RequestInfo,
    heads: Option<&'a Heads>,
    took: Duration,
    now: SystemTime,
}

impl Entry<'_> {
    fn text(&self, text: &LogText, escape: impl Fn(&str) -> Cow<'_, str>) -> String {
        let mut line = String::with_capacity(256);
        for part in &text.0 {
            match part {
                LogPart::Text(text) => line.push_str(text),
                LogPart::Fact(fact, length) => match self.fact(fact) {
                    Some(value) => line.push_str(&escape(shortened(&value, *length))),
                    None => line.push('-'),
                },
            }
        }
        line
    }

    fn object(&self, keys: &[(Arc<str>, LogJson)]) -> serde_json::Map<String, serde_json::Value> {
        keys.iter().map(|(key, value)| (key.to_string(), self.json(value))).collect()
    }

    /// A number stays one where it is all that stands under a key.
    fn json(&self, value: &LogJson) -> serde_json::Value {
        match value {
            LogJson::Fixed(value) => value.clone(),
            LogJson::Object(keys) => self.object(keys).into(),
            LogJson::List(items) => items.iter().map(|item| self.json(item)).collect(),
            LogJson::Text(text) => match text.0.as_slice() {
                [LogPart::Fact(fact, length)] => match self.fact(fact) {
                    Some(value) if fact.is_number() => value.parse::<u64>().map_or(serde_json::Value::Null, Into::into),
                    Some(value) => shortened(&value, *length).into(),
                    None => serde_json::Value::Null,
                },
                _ => self.text(text, |text| Cow::Borrowed(text)).into(),
            },
        }
    }

    fn fact(&self, fact: &LogFact) -> Option<Cow<'_, str>> {
        let request = self.request;
        let text = |text: String| Some(Cow::Owned(text));
        let known = |text: &str| (!text.is_empty()).then(|| Cow::Owned(text.to_owned()));
        match fact {
            LogFact::StartTime => text(TimeFormat::usual(self.began())),
            LogFact::StartTimeAs(format) => text(format.write(self.began())),
            LogFact::Request(headers) => headers.iter().find_map(|header| self.header(header, |heads| &heads.request)),
            LogFact::Response(headers) => {
                headers.iter().find_map(|header| self.header(header, |heads| &heads.response))
            }
            LogFact::Trailer(headers) => headers.iter().find_map(|header| self.header(header, |heads| &heads.trailers)),
            LogFact::Protocol => {
                self.heads.filter(|_| !request.is_bytes()).map(|heads| Cow::Borrowed(protocol(heads.version)))
            }
            LogFact::ResponseCode => text(request.response_code().to_string()),
            LogFact::ResponseFlags => text(request.response_flags().to_string()),
            LogFact::ResponseCodeDetails if request.is_bytes() => None,
            LogFact::ConnectionTerminationDetails if !request.is_bytes() => None,
            // No blanks: lines are split at them.
            LogFact::ResponseCodeDetails | LogFact::ConnectionTerminationDetails => {
                known(&request.response_details().replace(' ', "_"))
            }
            LogFact::TransportFailure => self.heads?.transport_failure.as_deref().map(Cow::Borrowed),
            LogFact::BytesReceived => text(request.request_bytes().to_string()),
            LogFact::BytesSent => text(request.response_bytes().to_string()),
            LogFact::Duration => text(self.took.as_millis().to_string()),
            LogFact::UpstreamHost => request.endpoint().and_then(|one| text(one.id().to_string())),
            LogFact::UpstreamCluster => request.cluster().and_then(|cluster| text(cluster.to_string())),
            LogFact::DownstreamLocalAddress => self.heads?.local.and_then(|address| text(address.to_string())),
            LogFact::DownstreamLocalIp => self.heads?.local.and_then(|address| text(address.ip().to_string())),
            LogFact::DownstreamRemoteIp => request.peer().and_then(|address| text(address.ip().to_string())),
            LogFact::DownstreamDirectIp => self.heads?.direct.and_then(|address| text(address.ip().to_string())),
            LogFact::DownstreamRemoteAddress => request.peer().and_then(|address| text(address.to_string())),
            LogFact::DownstreamDirectAddress => self.heads?.direct.and_then(|address| text(address.to_string())),
            LogFact::PeerIdentity => request.client_identity().and_then(|id| text(id.as_str().to_owned())),
            LogFact::RequestedServerName => self.heads?.server_name.as_ref().and_then(|name| text(name.to_string())),
            LogFact::RouteName => request.route().and_then(known),
            LogFact::GrpcStatus => request.grpc_response_status().and_then(|status| text(status.to_string())),
            LogFact::GrpcStatusName => request.grpc_response_status().and_then(|status| text(grpc_name(status, true))),
            LogFact::GrpcStatusInCapitals => {
                request.grpc_response_status().and_then(|status| text(grpc_name(status, false)))
            }
            LogFact::Attempts => text(request.attempts.to_string()),
            LogFact::TraceId => request.inherited.trace.context().and_then(|trace| text(trace.trace_id.to_string())),
            LogFact::Other(_) => None,
        }
    }

    fn began(&self) -> SystemTime {
        self.now.checked_sub(self.took).unwrap_or(self.now)
    }

    fn header(&self, header: &LogHeader, of: impl Fn(&Heads) -> &HeaderMap) -> Option<Cow<'_, str>> {
        let heads = self.heads?;
        match header {
            LogHeader::Method => self.request.method().map(Method::as_str).map(Cow::Borrowed),
            LogHeader::Path => Some(&*heads.path).filter(|path| !path.is_empty()).map(Cow::Borrowed),
            LogHeader::Authority => {
                Some(self.request.authority()).filter(|authority| !authority.is_empty()).map(Cow::Borrowed)
            }
            LogHeader::UpstreamTime => heads.upstream_time.map(|time| Cow::Owned(time.as_millis().to_string())),
            LogHeader::Named(name) => {
                of(heads).get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned().into())
            }
        }
    }
}

impl LogFact {
    fn is_number(&self) -> bool {
        matches!(
            self,
            LogFact::ResponseCode
                | LogFact::BytesReceived
                | LogFact::BytesSent
                | LogFact::Duration
                | LogFact::GrpcStatus
                | LogFact::Attempts
        )
    }
}

/// gRPC's name of a status; the number, where it has none. In Envoy's words `CANCELLED` is `Canceled`.
fn grpc_name(status: u32, is_camel: bool) -> String {
    let name = usize::try_from(status).ok().and_then(|status| GRPC_STATUSES.get(status));
    match (name, is_camel) {
        (None, _) => status.to_string(),
        (Some(&"CANCELLED"), true) => "Canceled".to_owned(),
        (Some(name), true) if name.len() > 2 => name.split('_').map(capitalised).collect(),
        (Some(name), _) => (*name).to_owned(),
    }
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
    [first, &rest.to_ascii_lowercase()].concat()
}

fn shortened(text: &str, length: Option<usize>) -> &str {
    let end = length.and_then(|length| text.char_indices().nth(length)).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text)
}

/// A text in which no quote, no backslash and no control character stands by itself, nor what turns around the order in which
/// a terminal shows it.
fn escaped(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !matches!(c, '"' | '\\') && !is_unseen(c);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_plain(c) => out.push(c),
            c => _ = write!(out, "\\u{:04x}", u32::from(c)),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, UNIX_EPOCH};

    use http::{StatusCode, Version};

    use super::*;
    use crate::error::{ErrorKind, MeshError};
    use crate::request_info::{Direction, Observers};

    fn request(direction: Direction) -> RequestInfo {
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.observe(&Observers::from([]), direction, &Method::GET);
        request.note_authority("reviews:9080");
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", "curl/8 \"x\"\\".parse().unwrap());
        headers.insert("x-request-id", http::HeaderValue::from_bytes(b"a\tb\xff").unwrap());
        request.note_head("/a?b=1", Version::HTTP_11, &headers);
        request
    }

    fn at() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_795_939_200_123)
    }

    #[test]
    fn a_line_has_all_columns_and_a_client_cannot_forge_another() {
        let mut answered = request(Direction::Outbound);
        answered.note_response(StatusCode::OK, &HeaderMap::new(), true);
        answered.note_complete();
        assert_eq!(
            line(&LogFormat::default(), &answered, Duration::from_millis(7), at()).to_string(),
            "[2026-11-29T08:00:00.116Z] \"GET /a?b=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 0 7 - \"-\" \
             \"curl/8 \\\"x\\\"\\\\\" \"a\\tb\u{fffd}\" \"reviews:9080\" \"-\" - - - - - -\n"
        );
        let mut failed = request(Direction::Outbound);
        failed.note_error(ErrorKind::NoHealthyEndpoint);
        let shown = line(&LogFormat::default(), &failed, Duration::ZERO, at()).to_string();
        assert!(shown.contains("\" 503 UH no_healthy_upstream - "), "{shown}");
    }

    #[test]
    fn why_a_try_got_no_connection_is_one_word_with_an_end_that_closes_no_quote() {
        let cause = std::io::Error::other(format!("of \"x\"\n{}", "y".repeat(1000)));
        let error = MeshError::new(ErrorKind::ConnectFailure, "TLS").caused_by(cause);
        let mut failed = request(Direction::Outbound);
        failed.note_transport_failure(&error);
        failed.note_error(ErrorKind::ConnectFailure);
        let shown = line(&LogFormat::default(), &failed, Duration::ZERO, at()).to_string();
        assert!(shown.contains(" - \"TLS:_of_\\\"x\\\"\\nyyy") && shown.len() < 600, "{shown}");
        let shown = line(&LogFormat::json(), &failed, Duration::ZERO, at()).to_string();
        let object: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let reason = object["upstream_transport_failure_reason"].as_str().unwrap();
        assert!(reason.starts_with("TLS:_of_\"x\"\ny") && reason.len() == 256, "{reason}");
    }

    #[test]
    fn a_connection_has_a_line_without_what_only_requests_have() {
        let connection = |error: Option<ErrorKind>| {
            let mut connection = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
            connection.observe(&Observers::from([]), Direction::Inbound, &Method::CONNECT);
            connection.note_bytes();
            connection.note_peer("10.0.0.9:5".parse().unwrap());
            let at_9000 = "10.0.0.1:9000".parse().unwrap();
            connection.note_connection(at_9000, "10.0.0.8:6".parse().unwrap(), Some(&"db.shop".into()));
            connection.note_route(&"".into(), Some(&"outbound|9000||db.shop".into()));
            match error {
                Some(error) => connection.note_error(error),
                None => connection.note_complete(),
            }
            connection.note_passed(12, 34);
            connection
        };
        assert_eq!(
            line(&LogFormat::default(), &connection(None), Duration::from_millis(7), at()).to_string(),
            "[2026-11-29T08:00:00.116Z] \"- - -\" 0 - - - \"-\" 12 34 7 - \"-\" \"-\" \"-\" \"-\" \"-\" \
             outbound|9000||db.shop - 10.0.0.1:9000 10.0.0.9:5 db.shop -\n"
        );
        let ends = LogText::parse("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS%").unwrap();
        let shown = line(&LogFormat::Text(ends), &connection(None), Duration::ZERO, at()).to_string();
        assert_eq!(shown, "10.0.0.9:5 10.0.0.8:6\n");
        let hosts = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% \
                     %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%";
        let hosts = LogText::parse(hosts).unwrap();
        assert_eq!(hosts.without_effect().count(), 0);
        let shown = line(&LogFormat::Text(hosts), &connection(None), Duration::ZERO, at()).to_string();
        assert_eq!(shown, "10.0.0.9 10.0.0.8 10.0.0.1\n");
        for (error, flags) in [
            (ErrorKind::NoHealthyEndpoint, "UH"),
            (ErrorKind::ConnectFailure, "UF"),
            (ErrorKind::NoRoute, "NR"),
            (ErrorKind::AccessDenied, "-"),
        ] {
            let mut failed = connection(Some(error));
            failed.note_details("rbac_access_denied_matched_policy[ns[a b]]");
            let shown = line(&LogFormat::default(), &failed, Duration::ZERO, at()).to_string();
            let expected = format!("\"- - -\" 0 {flags} - rbac_access_denied_matched_policy[ns[a_b]] \"-\" 12 34 0 ");
            assert!(shown.contains(&expected), "{shown}");
        }
    }

    #[test]
    fn json_has_numbers_and_null_where_there_is_nothing() {
        let mut given_up = request(Direction::Inbound);
        given_up.note_peer("10.0.0.1:5".parse().unwrap());
        let shown = line(&LogFormat::json(), &given_up, Duration::from_millis(7), at()).to_string();
        let object: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&object["response_code"], &object["response_flags"]), (&0.into(), &"DC".into()));
        assert_eq!(object["user_agent"], "curl/8 \"x\"\\");
        assert_eq!((&object["duration"], &object["route_name"]), (&7.into(), &serde_json::Value::Null));
        assert_eq!(object["downstream_remote_address"], "10.0.0.1:5");
        assert_eq!(shown.matches('\n').count(), 1);
    }

    #[test]
    fn json_is_as_deep_as_its_format_and_what_is_fixed_stays() {
        let format = serde_json::json!({
            "http": {"status": "%RESPONSE_CODE%", "line": "%REQ(:METHOD)% %RESPONSE_CODE%"},
            "list": ["%REQ(:PATH)%", 1.5, {"deep": "%REQ(none)%"}],
            "version": 2, "is": true, "none": null,
        });
        let format = LogFormat::of_json(&format).unwrap();
        let shown = line(&format, &request(Direction::Outbound), Duration::ZERO, at()).to_string();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let expected = serde_json::json!({
            "http": {"status": 0, "line": "GET 0"}, "list": ["/a?b=1", 1.5, {"deep": null}],
            "version": 2, "is": true, "none": null,
        });
        assert_eq!(shown, expected);
        let deep = (0..20).fold(serde_json::json!("x"), |inner, _| serde_json::json!({"a": inner}));
        assert!(LogFormat::of_json(&deep).unwrap_err().reason.contains("deep"));
    }

    #[test]
    fn what_a_terminal_would_show_the_other_way_around_is_escaped() {
        assert_eq!(escaped("a\u{202e}b\u{2066}\u{200f}c\u{2028}\u{7f}"), "a\\u202eb\\u2066\\u200fc\\u2028\\u007f");
        assert_eq!(escaped("grün \u{05d0}"), "grün \u{05d0}");
    }

    #[test]
    fn a_time_and_a_status_are_written_in_the_form_that_is_asked_for() {
        let mut call = request(Direction::Outbound);
        call.is_grpc = true;
        let status = |status: &str| [("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect();
        let all = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%";
        let all = LogFormat::Text(LogText::parse(all).unwrap());
        for (code, expected) in [
            ("0", "OK OK 0 0\n"),
            ("1", "Canceled CANCELLED 1 1\n"),
            ("3", "InvalidArgument INVALID_ARGUMENT 3 3\n"),
            ("16", "Unauthenticated UNAUTHENTICATED 16 16\n"),
            ("99", "99 99 99 99\n"),
        ] {
            call.note_response(StatusCode::OK, &status(code), true);
            assert_eq!(line(&all, &call, Duration::ZERO, at()).to_string(), expected);
        }
        let format = serde_json::json!({"code": "%GRPC_STATUS_NUMBER%", "at": "%START_TIME(%s.%3f)%"});
        let shown = line(&LogFormat::of_json(&format).unwrap(), &call, Duration::from_millis(100), at()).to_string();
        assert_eq!(shown, "{\"at\":\"1795939200.023\",\"code\":99}\n");
    }

    #[test]
    fn a_text_is_cut_where_the_format_says() {
        let format = LogFormat::Text(LogText::parse("%REQ(:PATH):3% %REQ(none?:METHOD)% %GRPC_STATUS%").unwrap());
        assert_eq!(line(&format, &request(Direction::Outbound), Duration::ZERO, at()).to_string(), "/a? GET -\n");
    }
}
