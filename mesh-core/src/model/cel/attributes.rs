//! What an expression may ask about: Envoy's attributes, and of which kind each is.

use std::borrow::Cow;

use super::eval::CelValue;
use crate::request::miscased_method;

/// Who knows the attributes of one request.
pub trait Facts {
    /// The value of an attribute; `None` where there is none.
    fn get(&self, attribute: CelAttribute) -> Option<CelValue<'_>>;

    /// What an attribute that is a map has under a key.
    fn entry(&self, map: CelAttribute, key: &str) -> Option<Cow<'_, str>>;

    /// Whether an attribute that is a map has something under a key, whatever that is.
    fn has_entry(&self, map: CelAttribute, key: &str) -> bool {
        self.entry(map, key).is_some()
    }

    /// Whether what an attribute that is a map has under a key is a list with this in it; `None` where nobody can tell.
    fn has_item(&self, map: CelAttribute, key: &str, item: &str) -> Option<bool> {
        _ = (map, key, item);
        None
    }

    /// What is there cannot be calculated with: it is no number, or too large.
    fn note_doubt(&self) {}

    /// Whether what is not there is unequal to everything, instead of leaving all undecided that asks for it.
    fn are_total(&self) -> bool {
        false
    }
}

/// What expressions find out where there is no request.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Facts for Nothing {
    fn get(&self, _: CelAttribute) -> Option<CelValue<'_>> {
        None
    }

    fn entry(&self, _: CelAttribute, _: &str) -> Option<Cow<'_, str>> {
        None
    }
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
    RequestPrincipal = "request.auth.principal" Text,
    RequestClaims = "request.auth.claims" Map,
    SourcePrincipal = "source.principal" Text,
    SourceNamespace = "source.namespace" Text,
}

/// When rules on requests know an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// While the request is decided on.
    Request,
    /// When there is an answer.
    Answer,
    /// Both times.
    Both,
}

impl CelAttribute {
    /// The attribute of this name.
    pub(super) fn of(path: &str) -> Option<CelAttribute> {
        Self::ALL.iter().find(|(name, _)| *name == path).map(|(_, attribute)| *attribute)
    }

    /// Whether a client has another one whenever it likes: with each connection, or by writing it.
    pub(super) fn is_new_each_time(self) -> bool {
        matches!(self, CelAttribute::SourceAddress | CelAttribute::SourcePort | CelAttribute::RequestId)
    }

    /// When rules on requests know it, if they do.
    pub(super) fn in_rules(self) -> Option<Moment> {
        use CelAttribute as Of;
        match self {
            Of::RequestMethod | Of::RequestHost | Of::SourceAddress | Of::SourcePort | Of::ConnectionMtls => {
                Some(Moment::Both)
            }
            Of::ConnectionPeer => Some(Moment::Both),
            one if one.is_of_rules() => Some(Moment::Both),
            Of::RequestPath | Of::RequestUrlPath | Of::RequestQuery | Of::RequestHeaders | Of::RequestReferer => {
                Some(Moment::Request)
            }
            Of::RequestUserAgent | Of::RequestId | Of::RequestProtocol => Some(Moment::Request),
            Of::ResponseCode | Of::ResponseHeaders => Some(Moment::Answer),
            _ => None,
        }
    }

    /// Whether nobody else knows it: it is none of Envoy's.
    pub(super) fn is_of_rules(self) -> bool {
        use CelAttribute::{RequestClaims, RequestPrincipal, SourceNamespace, SourcePrincipal};
        matches!(self, RequestClaims | RequestPrincipal | SourceNamespace | SourcePrincipal)
    }

    /// Whether it is what a token says.
    pub(super) fn is_of_token(self) -> bool {
        matches!(self, CelAttribute::RequestClaims | CelAttribute::RequestPrincipal)
    }

    /// Why it is never this text, where it is not: whoever compares the two means something else.
    pub(super) fn never(self, text: &str) -> Option<String> {
        const SCHEME: &str = "spiffe://";
        match self {
            // Whether it is there at all.
            _ if text.is_empty() => None,
            CelAttribute::RequestMethod => {
                let meant = miscased_method(text)?;
                Some(format!("no request has the method {text}; did you mean {meant}?"))
            }
            CelAttribute::RequestUrlPath if text.contains('?') => Some("it has no query: request.path has".to_owned()),
            CelAttribute::RequestProtocol if !["HTTP/1.0", "HTTP/1.1", "HTTP/2"].contains(&text) => {
                Some("it is HTTP/1.0, HTTP/1.1 or HTTP/2".to_owned())
            }
            CelAttribute::SourcePrincipal if text.starts_with(SCHEME) => {
                Some(format!("a principal is written without {SCHEME}"))
            }
            CelAttribute::ConnectionPeer if !text.starts_with(SCHEME) => {
                Some(format!("it begins with {SCHEME}: source.principal does not"))
            }
            _ => None,
        }
    }

    pub(super) fn path(self) -> &'static str {
        Self::ALL.iter().find(|(_, attribute)| *attribute == self).map_or("", |(name, _)| name)
    }
}
