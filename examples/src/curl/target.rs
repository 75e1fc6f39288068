//! Where a call goes: `http://host:port/path`, gRPC as `xds:///name:port/package.Service/Method`, or bytes as
//! `tcp://host:port`.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::PathAndQuery;

use crate::echo::proto::SERVICE;

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An HTTP request to this URI.
    Http(Uri),
    /// A gRPC call.
    Grpc {
        /// The channel's target: `xds:///name:port`.
        channel: String,
        /// The method: `/package.Service/Method`.
        method: PathAndQuery,
    },
    /// A connection for bytes.
    Tcp {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetError(String);

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; expected http://host:port/path, xds:///name:port/package.Service/Method or tcp://host:port",
            self.0
        )
    }
}

impl std::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;

    /// Without a method, a gRPC target calls the unary one of the echo.
    fn from_str(text: &str) -> Result<Target, TargetError> {
        let wrong = |what: &str| TargetError(format!("{text:?}: {what}"));
        let Some(rest) = text.strip_prefix("xds:") else {
            let uri: Uri = text.parse().map_err(|error| wrong(&format!("{error}")))?;
            return match (uri.scheme_str(), uri.authority()) {
                (Some("http" | "https"), Some(_)) => Ok(Target::Http(uri)),
                (Some("tcp"), Some(authority)) => {
                    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
                        return Err(wrong("a connection for bytes has no path"));
                    }
                    let port = authority.port_u16().ok_or_else(|| wrong("no port"))?;
                    Ok(Target::Tcp { host: authority.host().to_owned(), port })
                }
                _ => Err(wrong("neither an http, an xds nor a tcp target")),
            };
        };
        let (authority, rest) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').ok_or_else(|| wrong("no name after the authority"))?,
            None => ("", rest),
        };
        let (name, method) = match rest.split_once('/') {
            Some((name, method)) => (name, format!("/{method}")),
            None => (rest, format!("/{SERVICE}/Unary")),
        };
        if name.is_empty() {
            return Err(wrong("no name"));
        }
        if method[1..].split('/').count() != 2 || method[1..].split('/').any(str::is_empty) {
            return Err(wrong("the method is not package.Service/Method"));
        }
        let method = method.parse().map_err(|error| wrong(&format!("{error}")))?;
        Ok(Target::Grpc { channel: format!("xds://{authority}/{name}"), method })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_target_ends_in_a_service_and_its_method() {
        let grpc =
            |channel: &str, method: &str| Ok(Target::Grpc { channel: channel.into(), method: method.parse().unwrap() });
        assert_eq!("xds:///a:80/p.S/M".parse(), grpc("xds:///a:80", "/p.S/M"));
        assert_eq!("xds:a/p.S/M".parse(), grpc("xds:///a", "/p.S/M"));
        assert_eq!("xds://east/a/p.S/M".parse(), grpc("xds://east/a", "/p.S/M"));
        assert_eq!("xds:///a:80".parse(), grpc("xds:///a:80", "/mesh.echo.v1.Echo/Unary"));
        assert!(matches!("http://a:80/b?c".parse(), Ok(Target::Http(_))));
        assert_eq!("tcp://a:7".parse(), Ok(Target::Tcp { host: "a".into(), port: 7 }));
        for text in [
            "",
            "a:80",
            "/path",
            "ftp://a/",
            "xds://a",
            "xds:///",
            "xds:///a/S",
            "xds:///a/S/",
            "xds:///a/S/M/x",
            "tcp://a",
            "tcp://a:7/x",
            "tcp://",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
