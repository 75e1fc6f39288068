//! What a port speaks, from what its object says of it (Istio: pkg/config/kube/conversion.go).

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 in plaintext.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC, which proxies make of gRPC-Web.
    GrpcWeb,
    /// HTTP inside TLS that the application makes itself.
    Https,
    /// TLS that the application makes itself.
    Tls,
    /// Something that is not HTTP.
    Tcp,
    /// Nothing is said; whatever the client speaks.
    Unspecified,
}

impl Protocol {
    /// Whether requests travel over HTTP/2.
    pub const fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// The name, as the status page shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "HTTP",
            Protocol::Http2 => "HTTP2",
            Protocol::Grpc => "GRPC",
            Protocol::GrpcWeb => "GRPC-WEB",
            Protocol::Https => "HTTPS",
            Protocol::Tls => "TLS",
            Protocol::Tcp => "TCP",
            Protocol::Unspecified => "auto",
        }
    }

    fn by_name(name: &str) -> Option<Protocol> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" | "hbone" | "doublehbone" => Protocol::Http,
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "grpc-web" => Protocol::GrpcWeb,
            "https" => Protocol::Https,
            "tls" => Protocol::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
            _ => return None,
        })
    }
}

/// Of a port of a Kubernetes service: `appProtocol`, else the port's name, else well-known numbers.
pub fn of_service_port(app_protocol: Option<&str>, name: &str, number: u16) -> Protocol {
    let by_app = app_protocol.and_then(|text| match text {
        "kubernetes.io/h2c" => Some(Protocol::Http2),
        "kubernetes.io/ws" => Some(Protocol::Http),
        "kubernetes.io/wss" => Some(Protocol::Https),
        _ => Protocol::by_name(text),
    });
    // `grpc-web` is a protocol of its own name, everything else ends at the first dash.
    let by_name = || match name.to_ascii_lowercase().starts_with("grpc-web") {
        true => Some(Protocol::GrpcWeb),
        false => Protocol::by_name(name.split('-').next().unwrap_or_default()),
    };
    by_app.or_else(by_name).unwrap_or(match number {
        // SMTP, DNS, MySQL and MongoDB: the server speaks first, so the client's bytes tell nothing.
        25 | 53 | 3306 | 27017 => Protocol::Tcp,
        _ => Protocol::Unspecified,
    })
}

/// Of a port of a ServiceEntry: its `protocol`, else its name.
pub fn of_entry_port(protocol: Option<&str>, name: &str, number: u16) -> Protocol {
    of_service_port(protocol, name, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_that_is_accepted_means_something() {
        let accepted = crate::config::istio::PROTOCOLS.into_iter().filter(|name| *name != "udp");
        for name in accepted {
            assert!(Protocol::by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_application_protocol_wins_over_the_name_and_the_name_over_the_number() {
        let cases = [
            (Some("kubernetes.io/h2c"), "tcp", 80, Protocol::Http2),
            (Some("GRPC"), "http", 80, Protocol::Grpc),
            (Some("example.com/x"), "http", 80, Protocol::Http),
            (None, "http-web", 3306, Protocol::Http),
            (None, "grpc-web-2", 80, Protocol::GrpcWeb),
            (None, "HTTP2", 80, Protocol::Http2),
            (None, "web", 80, Protocol::Unspecified),
            (None, "", 3306, Protocol::Tcp),
            (None, "httpx", 80, Protocol::Unspecified),
        ];
        for (app, name, number, expected) in cases {
            assert_eq!(of_service_port(app, name, number), expected, "{app:?} {name} {number}");
        }
    }
}
