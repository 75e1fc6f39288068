//! Access logs: where they go, and what a line of them is made of. The words are Envoy's (`%RESPONSE_CODE%`).

use std::sync::Arc;

use http::HeaderName;

use super::command::{Command, Piece, pieces};
use super::{LogFilter, TimeFormat};
use crate::error::Invalid;
use crate::request::is_authority;

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
    /// Where lines go.
    pub to: LogDestination,
    /// What a line is made of.
    pub format: LogFormat,
    /// Which requests are in it; `None` for all.
    pub filter: Option<LogFilter>,
}

impl AccessLog {
    /// The key of the body beside attributes, where a log goes to a collector.
    pub const BODY: &str = "";

    /// A log in this file, whose lines are made so. `/dev/stdout` and `/dev/stderr` are this process's own.
    pub fn new(path: impl Into<Arc<str>>, format: LogFormat) -> Self {
        AccessLog { to: LogDestination::File(path.into()), format, filter: None }
    }

    /// A log at the application's collector, whose entries are made so.
    pub fn to_collector(format: LogFormat) -> Self {
        AccessLog { to: LogDestination::Collector, format, filter: None }
    }
}

/// Where an access log goes. Exhaustive: whoever writes one has to know each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogDestination {
    /// Lines are added to the file of this path.
    File(Arc<str>),
    /// To the collector of OpenTelemetry's that the application has. A text is the body of a record; of an object each key is an
    /// attribute, and the [one without a name](AccessLog::BODY) the body.
    Collector,
}

/// What a line is made of. Exhaustive: whoever writes one has to know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A text with commands in it.
    Text(LogText),
    /// An object of JSON, in the order of its keys.
    Json(Vec<(Arc<str>, LogJson)>),
}

/// A value in a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogJson {
    /// A text; a number, where nothing but a fact is in it that is one, and `null`, where there is none.
    Text(LogText),
    /// The same in every line: a number, whether something is so, `null`.
    Fixed(serde_json::Value),
    /// An object.
    Object(Vec<(Arc<str>, LogJson)>),
    /// A list.
    List(Vec<LogJson>),
}

/// How deep values may stand in each other.
const DEEPEST: usize = 16;

impl LogJson {
    fn read(value: &serde_json::Value, depth: usize) -> Result<LogJson, Invalid> {
        use serde_json::Value;
        if depth > DEEPEST {
            return Err(Invalid::new(format!("is more than {DEEPEST} deep")));
        }
        Ok(match value {
            Value::String(text) => LogJson::Text(LogText::parse(text)?),
            Value::Object(fields) => LogJson::Object(LogJson::fields(fields, depth + 1)?),
            Value::Array(items) => {
                let item =
                    |(index, item)| LogJson::read(item, depth + 1).map_err(|invalid| invalid.at(format!("[{index}]")));
                LogJson::List(items.iter().enumerate().map(item).collect::<Result<_, _>>()?)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => LogJson::Fixed(value.clone()),
        })
    }

    fn fields(
        fields: &serde_json::Map<String, serde_json::Value>,
        depth: usize,
    ) -> Result<Vec<(Arc<str>, LogJson)>, Invalid> {
        let one = |(key, value): (&String, &serde_json::Value)| {
            Ok((Arc::from(key.as_str()), LogJson::read(value, depth).map_err(|invalid| invalid.at(key))?))
        };
        let mut fields = fields.iter().map(one).collect::<Result<Vec<(Arc<str>, LogJson)>, Invalid>>()?;
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(fields)
    }

    fn texts<'j>(&'j self, texts: &mut Vec<&'j LogText>) {
        match self {
            LogJson::Text(text) => texts.push(text),
            LogJson::Fixed(_) => {}
            LogJson::Object(fields) => fields.iter().for_each(|(_, value)| value.texts(texts)),
            LogJson::List(items) => items.iter().for_each(|item| item.texts(texts)),
        }
    }
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
        let text = |(key, text): (&str, &str)| (key.into(), LogJson::Text(LogText::parse(text).unwrap_or_default()));
        let mut all: Vec<(Arc<str>, LogJson)> = DEFAULT_JSON.map(text).into();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        LogFormat::Json(all)
    }

    /// An object of JSON whose texts have commands in them, as Envoy's `json_format`: objects and lists in it stay what they
    /// are, and so do numbers.
    ///
    /// # Errors
    /// Where it is no object, is too deep, or has a text that cannot be read; the error has the path of the key.
    ///
    /// ```
    /// use mesh_core::model::LogFormat;
    /// use serde_json::json;
    ///
    /// let format = LogFormat::of_json(&json!({"http": {"status": "%RESPONSE_CODE%"}, "version": 2}));
    /// assert!(format.is_ok());
    /// assert_eq!(LogFormat::of_json(&json!({"a": {"b": "%"}})).unwrap_err().field, "a.b");
    /// ```
    pub fn of_json(value: &serde_json::Value) -> Result<Self, Invalid> {
        match value {
            serde_json::Value::Object(fields) => LogJson::fields(fields, 1).map(LogFormat::Json),
            _ => Err(Invalid::new("not an object")),
        }
    }

    /// Commands that there is nothing of here.
    pub fn without_effect(&self) -> impl Iterator<Item = &str> {
        let mut texts = Vec::new();
        match self {
            LogFormat::Text(text) => texts.push(text),
            LogFormat::Json(fields) => fields.iter().for_each(|(_, value)| value.texts(&mut texts)),
        }
        texts.into_iter().flat_map(LogText::without_effect)
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
    /// `START_TIME(%Y-%m-%d)`
    StartTimeAs(TimeFormat),
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
    /// `CONNECTION_TERMINATION_DETAILS`: of a connection that is not HTTP, why it was closed.
    ConnectionTerminationDetails,
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`: why the last try got no connection.
    TransportFailure,
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
    /// `DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT`
    DownstreamLocalIp,
    /// `DOWNSTREAM_REMOTE_ADDRESS`
    DownstreamRemoteAddress,
    /// `DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT`
    DownstreamRemoteIp,
    /// `DOWNSTREAM_DIRECT_REMOTE_ADDRESS`
    DownstreamDirectAddress,
    /// `DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT`
    DownstreamDirectIp,
    /// `DOWNSTREAM_PEER_URI_SAN`
    PeerIdentity,
    /// `REQUESTED_SERVER_NAME`
    RequestedServerName,
    /// `ROUTE_NAME`
    RouteName,
    /// `GRPC_STATUS_NUMBER`, `GRPC_STATUS(NUMBER)`
    GrpcStatus,
    /// `GRPC_STATUS`, `GRPC_STATUS(CAMEL_STRING)`: `InvalidArgument`
    GrpcStatusName,
    /// `GRPC_STATUS(SNAKE_STRING)`: `INVALID_ARGUMENT`
    GrpcStatusInCapitals,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`
    Attempts,
    /// `TRACE_ID`
    TraceId,
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
        let part = |piece| match piece {
            Piece::Text(text) => Ok(LogPart::Text(String::from_utf8_lossy(&text).into_owned())),
            Piece::Command(command) => part(&command),
        };
        Ok(LogText(pieces(text.as_bytes())?.into_iter().map(part).collect::<Result<_, _>>()?))
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
const NEVER: [&str; 1] = ["UPSTREAM_LOCAL_ADDRESS"];

fn part(&Command { name, arguments, length }: &Command<'_>) -> Result<LogPart, Invalid> {
    let headers = || {
        let all = arguments.unwrap_or_default().split('?').map(header).collect::<Option<Vec<_>>>();
        all.ok_or_else(|| Invalid::new(format!("%{name}%: not the name of a header")))
    };
    // A part that is not known is told with its command: written as if it were not there, it would be a lie.
    let other = || LogFact::Other(arguments.map_or_else(|| name.to_owned(), |part| format!("{name}({part})")));
    let fact = match name {
        "START_TIME" => match arguments.unwrap_or_default() {
            "" => LogFact::StartTime,
            format => TimeFormat::parse(format).map_or_else(other, LogFact::StartTimeAs),
        },
        "GRPC_STATUS" => match arguments.unwrap_or_default() {
            "" | "CAMEL_STRING" => LogFact::GrpcStatusName,
            "SNAKE_STRING" => LogFact::GrpcStatusInCapitals,
            "NUMBER" => LogFact::GrpcStatus,
            _ => other(),
        },
        "REQ" => LogFact::Request(headers()?),
        "RESP" => LogFact::Response(headers()?),
        "TRAILER" => LogFact::Trailer(headers()?),
        _ if arguments.is_some() => other(),
        "PROTOCOL" => LogFact::Protocol,
        "RESPONSE_CODE" => LogFact::ResponseCode,
        "RESPONSE_FLAGS" => LogFact::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => LogFact::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => LogFact::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => LogFact::TransportFailure,
        "BYTES_RECEIVED" => LogFact::BytesReceived,
        "BYTES_SENT" => LogFact::BytesSent,
        "DURATION" => LogFact::Duration,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => LogFact::UpstreamHost,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => LogFact::UpstreamCluster,
        "DOWNSTREAM_LOCAL_ADDRESS" => LogFact::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => LogFact::DownstreamLocalIp,
        "DOWNSTREAM_REMOTE_ADDRESS" => LogFact::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => LogFact::DownstreamRemoteIp,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => LogFact::DownstreamDirectAddress,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => LogFact::DownstreamDirectIp,
        "DOWNSTREAM_PEER_URI_SAN" => LogFact::PeerIdentity,
        "REQUESTED_SERVER_NAME" => LogFact::RequestedServerName,
        "ROUTE_NAME" => LogFact::RouteName,
        "GRPC_STATUS_NUMBER" => LogFact::GrpcStatus,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => LogFact::Attempts,
        "TRACE_ID" => LogFact::TraceId,
        _ => other(),
    };
    Ok(LogPart::Fact(fact, length))
}

fn header(name: &str) -> Option<LogHeader> {
    let name = name.to_ascii_lowercase();
    Some(match name.as_str() {
        ":method" => LogHeader::Method,
        ":path" | "x-envoy-original-path" => LogHeader::Path,
        name if is_authority(name) => LogHeader::Authority,
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
        assert!(keys.iter().all(|(_, value)| matches!(value, LogJson::Text(text) if text.0.len() == 1)));
    }

    #[test]
    fn what_is_no_command_is_said() {
        for (text, expected) in [
            ("%", "a lone %"),
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
        let parts = LogText::parse("%START_TIME(%Q)% %GRPC_STATUS(ROMAN)% %RESPONSE_CODE(x)% %START_TIME()%").unwrap();
        let expected = ["START_TIME(%Q)", "GRPC_STATUS(ROMAN)", "RESPONSE_CODE(x)"];
        assert_eq!(parts.without_effect().collect::<Vec<_>>(), expected);
    }
}
