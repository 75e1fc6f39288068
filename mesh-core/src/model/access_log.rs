//! Access logs: where they go, and what a line of them is made of. The words are Envoy's (`%RESPONSE_CODE%`).

use std::sync::Arc;

use http::HeaderName;

use crate::error::Invalid;

/// Istio's default line.
pub const DEFAULT_LINE: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The keys of Istio's default JSON, with what stands under each.
pub const DEFAULT_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// One access log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessLog {
    /// The file that lines are added to: `/dev/stdout` and `/dev/stderr` are this process's own.
    pub path: Arc<str>,
    /// What a line is made of.
    pub format: LogFormat,
}

impl AccessLog {
    /// A log of this file, whose lines are made so.
    pub fn new(path: impl Into<Arc<str>>, format: LogFormat) -> Self {
        AccessLog { path: path.into(), format }
    }
}

/// What a line is made of. Exhaustive: whoever writes one has to know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A text with commands in it.
    Text(LogText),
    /// An object of JSON, in the order of its keys; empty texts and facts that there are none of are left out, as in Envoy.
    Json(Vec<(Arc<str>, LogText)>),
}

impl Default for LogFormat {
    /// Istio's default line.
    fn default() -> Self {
        LogFormat::Text(LogText::parse(DEFAULT_LINE).unwrap_or_default())
    }
}

impl LogFormat {
    /// Istio's default JSON.
    pub fn json() -> Self {
        let text = |(key, text): (&str, &str)| (key.into(), LogText::parse(text).unwrap_or_default());
        let mut all: Vec<_> = DEFAULT_JSON.map(text).into();
        all.sort();
        LogFormat::Json(all)
    }

    /// Commands that there is nothing of here.
    pub fn without_effect(&self) -> impl Iterator<Item = &str> {
        let (text, json) = match self {
            LogFormat::Text(text) => (Some(text), &[][..]),
            LogFormat::Json(all) => (None, all.as_slice()),
        };
        text.into_iter().chain(json.iter().map(|(_, text)| text)).flat_map(LogText::without_effect)
    }
}

/// A text with commands in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogText(pub Vec<LogPart>);

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogPart {
    /// As it is.
    Text(String),
    /// A fact of the request; of a text no more than so many characters.
    Fact(LogFact, Option<usize>),
}

/// A fact of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogFact {
    /// `START_TIME`
    StartTime,
    /// `REQ(X?Y)`: the first of these that the request has.
    Request(Vec<LogHeader>),
    /// `RESP(X?Y)`
    Response(Vec<LogHeader>),
    /// `TRAILER(X?Y)`
    Trailer(Vec<LogHeader>),
    /// `PROTOCOL`
    Protocol,
    /// `RESPONSE_CODE`
    ResponseCode,
    /// `RESPONSE_FLAGS`
    ResponseFlags,
    /// `RESPONSE_CODE_DETAILS`
    ResponseCodeDetails,
    /// `BYTES_RECEIVED`
    BytesReceived,
    /// `BYTES_SENT`
    BytesSent,
    /// `DURATION`
    Duration,
    /// `UPSTREAM_HOST`, `UPSTREAM_REMOTE_ADDRESS`
    UpstreamHost,
    /// `UPSTREAM_CLUSTER`, `UPSTREAM_CLUSTER_RAW`
    UpstreamCluster,
    /// `DOWNSTREAM_LOCAL_ADDRESS`
    DownstreamLocalAddress,
    /// `DOWNSTREAM_REMOTE_ADDRESS`
    DownstreamRemoteAddress,
    /// `DOWNSTREAM_PEER_URI_SAN`
    PeerIdentity,
    /// `REQUESTED_SERVER_NAME`
    RequestedServerName,
    /// `ROUTE_NAME`
    RouteName,
    /// `GRPC_STATUS_NUMBER`
    GrpcStatus,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`
    Attempts,
    /// Another one of Envoy's, which there is none of in a process without a proxy.
    Other(String),
}

/// A header, or a part of a request's head that Envoy has as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogHeader {
    /// `:METHOD`
    Method,
    /// `:PATH`, and what Envoy keeps of it before a route changes it.
    Path,
    /// `:AUTHORITY`
    Authority,
    /// How long the endpoint took, in milliseconds, which Envoy tells in a header.
    UpstreamTime,
    /// This one.
    Named(String),
}

impl LogText {
    /// Reads a text of Envoy's.
    ///
    /// # Errors
    /// Where a command has no end, or a part of it cannot be read; the text says which.
    ///
    /// ```
    /// use mesh_core::model::LogText;
    ///
    /// assert_eq!(LogText::parse("100 %% %REQ(:PATH):32%").unwrap().0.len(), 2);
    /// assert!(LogText::parse("%REQ(").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let unended = || Invalid::new(format!("%{after:?} has no end, which is another %"));
            let (command, after) = match after.find(['(', '%']) {
                Some(open) if after.as_bytes().get(open) == Some(&b'(') => {
                    let close = after.find(')').ok_or_else(unended)?;
                    let (head, tail) = after.split_at(close);
                    let (end, after) = tail.split_once('%').ok_or_else(unended)?;
                    ((head.to_owned() + end), after)
                }
                _ => after.split_once('%').map(|(command, after)| (command.to_owned(), after)).ok_or_else(unended)?,
            };
            if !plain.is_empty() {
                parts.push(LogPart::Text(std::mem::take(&mut plain)));
            }
            parts.push(part(&command)?);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(LogPart::Text(plain));
        }
        Ok(LogText(parts))
    }

    /// Commands that there is nothing of here, which are written as `-`.
    pub fn without_effect(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            LogPart::Fact(LogFact::Other(name), _) if !NEVER.contains(&name.as_str()) => Some(name.as_str()),
            _ => None,
        })
    }
}

/// Of Istio's default line, what a process without a proxy has none of: nobody has to be told.
const NEVER: [&str; 3] =
    ["CONNECTION_TERMINATION_DETAILS", "UPSTREAM_TRANSPORT_FAILURE_REASON", "UPSTREAM_LOCAL_ADDRESS"];

fn part(command: &str) -> Result<LogPart, Invalid> {
    let wrong = |what: &str| Invalid::new(format!("%{command}%: {what}"));
    let (name, arguments, length) = match command.split_once('(') {
        Some((name, rest)) => {
            let (arguments, end) = rest.split_once(')').ok_or_else(|| wrong("`)` is missing"))?;
            let length = match end {
                "" => None,
                end => Some(end.strip_prefix(':').ok_or_else(|| wrong("what follows is not `:LENGTH`"))?),
            };
            (name, arguments, length)
        }
        None => match command.split_once(':') {
            Some((name, length)) => (name, "", Some(length)),
            None => (command, "", None),
        },
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    if !is_name(name) {
        return Err(wrong("not a command: `%NAME%` or `%NAME(ARGUMENT):LENGTH%`"));
    }
    let length = length.map(str::parse).transpose().map_err(|_| wrong("what follows is not `:LENGTH`"))?;
    let headers = || {
        let all = arguments.split('?').map(header).collect::<Option<Vec<_>>>();
        all.ok_or_else(|| wrong("not the name of a header"))
    };
    let fact = match name {
        "START_TIME" => LogFact::StartTime,
        "REQ" => LogFact::Request(headers()?),
        "RESP" => LogFact::Response(headers()?),
        "TRAILER" => LogFact::Trailer(headers()?),
        "PROTOCOL" => LogFact::Protocol,
        "RESPONSE_CODE" => LogFact::ResponseCode,
        "RESPONSE_FLAGS" => LogFact::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => LogFact::ResponseCodeDetails,
        "BYTES_RECEIVED" => LogFact::BytesReceived,
        "BYTES_SENT" => LogFact::BytesSent,
        "DURATION" => LogFact::Duration,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => LogFact::UpstreamHost,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => LogFact::UpstreamCluster,
        "DOWNSTREAM_LOCAL_ADDRESS" => LogFact::DownstreamLocalAddress,
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => LogFact::DownstreamRemoteAddress,
        "DOWNSTREAM_PEER_URI_SAN" => LogFact::PeerIdentity,
        "REQUESTED_SERVER_NAME" => LogFact::RequestedServerName,
        "ROUTE_NAME" => LogFact::RouteName,
        "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => LogFact::GrpcStatus,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => LogFact::Attempts,
        other => LogFact::Other(other.to_owned()),
    };
    Ok(LogPart::Fact(fact, length))
}

fn header(name: &str) -> Option<LogHeader> {
    let name = name.to_ascii_lowercase();
    Some(match name.as_str() {
        ":method" => LogHeader::Method,
        ":path" | "x-envoy-original-path" => LogHeader::Path,
        ":authority" => LogHeader::Authority,
        "x-envoy-upstream-service-time" => LogHeader::UpstreamTime,
        _ => LogHeader::Named(HeaderName::try_from(&name).ok()?.as_str().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_default_formats_are_read_whole() {
        let LogFormat::Text(line) = LogFormat::default() else { panic!("a text") };
        let facts = line.0.iter().filter(|part| matches!(part, LogPart::Fact(..))).count();
        assert_eq!((facts, line.without_effect().count()), (24, 0));
        let LogFormat::Json(keys) = LogFormat::json() else { panic!("JSON") };
        assert_eq!(keys.len(), 24);
        assert!(keys.iter().all(|(_, text)| text.0.len() == 1 && text.without_effect().next().is_none()));
    }

    #[test]
    fn what_is_no_command_is_said() {
        for (text, expected) in [
            ("%", "has no end"),
            ("a %REQ(x", "has no end"),
            ("%REQ(x)", "has no end"),
            ("%REQ(a b)%", "not the name of a header"),
            ("%req(x)%", "not a command"),
            ("%REQ(x)y%", "`:LENGTH`"),
            ("%REQ(x):y%", "`:LENGTH`"),
        ] {
            let error = LogText::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let all = LogText::parse("%START_TIME(%Y-%m)% %UPSTREAM_TLS_CIPHER% %%").unwrap();
        assert_eq!(all.without_effect().collect::<Vec<_>>(), ["UPSTREAM_TLS_CIPHER"]);
    }
}
