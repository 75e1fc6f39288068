//! What an expression may ask about: Envoy's attributes, and of which kind each is.

use std::borrow::Cow;

use super::eval::CelValue;

/// Who knows the attributes of one request.
pub trait Facts {
    /// The value of an attribute; `None` where there is none.
    fn get(&self, attribute: CelAttribute) -> Option<CelValue<'_>>;

    /// What an attribute that is a map has under a key.
    fn entry(&self, map: CelAttribute, key: &str) -> Option<Cow<'_, str>>;
}

/// Of which kind a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Double,
    Text,
    Duration,
    Time,
    /// Texts by their names.
    Map,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Bool => "a bool",
            Kind::Int => "an int",
            Kind::Double => "a double",
            Kind::Text => "a string",
            Kind::Duration => "a duration",
            Kind::Time => "a timestamp",
            Kind::Map => "a map",
        }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Kind::Int | Kind::Double)
    }
}

macro_rules! attributes {
    ($($name:ident = $path:literal $kind:ident $($head:ident)?,)*) => {
        /// Something that is known of a request, or of the connections that it came and went by.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        #[allow(missing_docs, reason = "the names are Envoy's")]
        pub enum CelAttribute {
            $($name,)*
        }

        impl CelAttribute {
            /// All of them, by their names.
            pub(super) const ALL: &'static [(&'static str, CelAttribute)] = &[$(($path, CelAttribute::$name),)*];

            pub(super) fn kind(self) -> Kind {
                match self {
                    $(CelAttribute::$name => Kind::$kind,)*
                }
            }

            /// Whether it is of the heads of request or answer.
            pub(super) fn needs_head(self) -> bool {
                match self {
                    $(CelAttribute::$name => false $(|| attributes!($head))?,)*
                }
            }
        }
    };
    (head) => { true };
}

attributes! {
    RequestMethod = "request.method" Text,
    RequestPath = "request.path" Text head,
    RequestUrlPath = "request.url_path" Text head,
    RequestQuery = "request.query" Text head,
    RequestHost = "request.host" Text,
    RequestHeaders = "request.headers" Map head,
    RequestReferer = "request.referer" Text head,
    RequestUserAgent = "request.useragent" Text head,
    RequestId = "request.id" Text head,
    RequestProtocol = "request.protocol" Text head,
    RequestTime = "request.time" Time,
    RequestDuration = "request.duration" Duration,
    RequestSize = "request.size" Int,
    ResponseCode = "response.code" Int,
    ResponseCodeDetails = "response.code_details" Text,
    ResponseFlags = "response.flags" Int,
    ResponseGrpcStatus = "response.grpc_status" Int,
    ResponseHeaders = "response.headers" Map head,
    ResponseTrailers = "response.trailers" Map head,
    ResponseSize = "response.size" Int,
    ResponseBackendLatency = "response.backend_latency" Duration head,
    SourceAddress = "source.address" Text,
    SourcePort = "source.port" Int,
    DestinationAddress = "destination.address" Text head,
    DestinationPort = "destination.port" Int head,
    ConnectionMtls = "connection.mtls" Bool,
    ConnectionServerName = "connection.requested_server_name" Text head,
    ConnectionPeer = "connection.uri_san_peer_certificate" Text,
    UpstreamAddress = "upstream.address" Text,
    UpstreamPort = "upstream.port" Int,
    UpstreamAttempts = "upstream.request_attempt_count" Int,
    ClusterName = "xds.cluster_name" Text,
    RouteName = "xds.route_name" Text,
    NodeMetadata = "node.metadata" Map,
}

impl CelAttribute {
    /// The attribute of this name.
    pub(super) fn of(path: &str) -> Option<CelAttribute> {
        Self::ALL.iter().find(|(name, _)| *name == path).map(|(_, attribute)| *attribute)
    }

    pub(super) fn path(self) -> &'static str {
        Self::ALL.iter().find(|(_, attribute)| *attribute == self).map_or("", |(name, _)| name)
    }
}
