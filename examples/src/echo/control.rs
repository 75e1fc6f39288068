//! What a caller can ask the echo to do, in headers (gRPC: metadata) or in the query.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};

use crate::{grpc, text};

/// What `--help` says of it.
pub const HELP: &str = "\
A request can ask for trouble, by these headers (gRPC: metadata) or query parameters of the same names:
  x-echo-delay: 250ms          answers that much later
  x-echo-status: 503           answers with this HTTP status (200 to 599)
  x-echo-grpc-status: 14       answers with this gRPC status, by number or name
  x-echo-hang: true            never answers

The answer tells who asked: peer is the SPIFFE ID of the caller, null where mutual TLS did not tell; tls has the version,
alpn and sni of the connection, null in plaintext; claims are those of its token, null without a good one.

gRPC is served on the same port, as mesh.echo.v1.Echo:
  message EchoRequest { string body = 1; uint32 count = 2; }
  message EchoReply   { string name = 1; string version = 2; string body = 3; string backend = 4;
                        string peer = 5; uint32 index = 6; map<string, string> headers = 7;
                        string peer_address = 8; EchoTls tls = 9; string claims = 10; }
  message EchoTls     { string version = 1; string alpn = 2; string sni = 3; }
  service Echo {
    rpc Unary(EchoRequest) returns (EchoReply);
    rpc ServerStream(EchoRequest) returns (stream EchoReply);          // `count` replies, at least one
    rpc ClientStream(stream EchoRequest) returns (EchoReply);          // the bodies, joined; `index` says how many
    rpc BidiStream(stream EchoRequest) returns (stream EchoReply);     // a reply each
  }";

/// What one request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// How much later to answer.
    pub delay: Duration,
    /// Whether never to answer.
    pub hang: bool,
    /// The HTTP status of the answer.
    pub status: Option<StatusCode>,
    /// The gRPC status of the answer.
    pub code: Option<Code>,
}

impl Control {
    /// What these headers and this query ask for; headers win.
    ///
    /// # Errors
    /// With a sentence for the caller, if a value means nothing.
    pub fn of(headers: &HeaderMap, query: Option<&str>) -> Result<Control, String> {
        let word = |name: &str| {
            let header = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            header.or_else(|| parameter(query?, name))
        };
        let mut control = Control::default();
        if let Some(delay) = word("x-echo-delay") {
            control.delay = text::duration(&delay).map_err(|what| format!("x-echo-delay: {what}"))?;
        }
        if let Some(status) = word("x-echo-status") {
            let status = status.parse().ok().filter(|status| (200..600).contains(status));
            let status = status.and_then(|status: u16| StatusCode::from_u16(status).ok());
            control.status = Some(status.ok_or("x-echo-status: expected a number from 200 to 599")?);
        }
        if let Some(code) = word("x-echo-grpc-status") {
            control.code = Some(grpc::code(&code).ok_or("x-echo-grpc-status: no such code")?);
        }
        control.hang = word("x-echo-hang").is_some_and(|hang| !matches!(&*hang, "false" | "0"));
        Ok(control)
    }

    /// Waits as long as was asked for: for ever, where that was asked for.
    pub async fn wait(&self) {
        if self.hang {
            std::future::pending::<()>().await;
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
    }

    /// The gRPC failure that was asked for.
    ///
    /// # Errors
    /// The failure.
    pub fn grpc(&self) -> Result<(), Status> {
        match self.code {
            Some(Code::Ok) | None => Ok(()),
            Some(code) => Err(Status::new(code, "as the request asked")),
        }
    }
}

/// A parameter of a query; values are taken as they are, as none of these needs escapes.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "true")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_asks_by_headers_or_query_and_headers_win() {
        let mut headers = HeaderMap::new();
        let query = Some("x=1&x-echo-delay=1s&x-echo-hang&x-echo-status=404");
        let asked = Control::of(&headers, query).unwrap();
        let expected =
            Control { delay: Duration::from_secs(1), hang: true, status: Some(StatusCode::NOT_FOUND), code: None };
        assert_eq!(asked, expected);
        headers.insert("x-echo-delay", "20ms".parse().unwrap());
        headers.insert("x-echo-hang", "false".parse().unwrap());
        headers.insert("x-echo-grpc-status", "UNAVAILABLE".parse().unwrap());
        let asked = Control::of(&headers, query).unwrap();
        assert_eq!((asked.delay, asked.hang, asked.code), (Duration::from_millis(20), false, Some(Code::Unavailable)));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for query in ["x-echo-delay=soon", "x-echo-status=100", "x-echo-status=x", "x-echo-grpc-status=99"] {
            assert!(Control::of(&HeaderMap::new(), Some(query)).is_err(), "{query}");
        }
    }
}
