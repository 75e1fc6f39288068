//! The messages of `mesh.echo.v1.Echo`, written by hand: no code generator is needed to read or to build this.

use std::collections::HashMap;

/// The service's full name.
pub const SERVICE: &str = "mesh.echo.v1.Echo";

/// What to echo. A message with one string is read as this one, such as `google.protobuf.StringValue`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct EchoRequest {
    /// Comes back.
    #[prost(string, tag = "1")]
    pub body: String,
    /// How many replies `ServerStream` gives; 0 means 1.
    #[prost(uint32, tag = "2")]
    pub count: u32,
}

/// What arrived, and where.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoReply {
    /// The service's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// What the request said.
    #[prost(string, tag = "3")]
    pub body: String,
    /// Which instance answered.
    #[prost(string, tag = "4")]
    pub backend: String,
    /// Who asked: the SPIFFE ID that mutual TLS told, or nothing.
    #[prost(string, tag = "5")]
    pub peer: String,
    /// The place of the reply in its stream, from 0; for `ClientStream`, the number of requests.
    #[prost(uint32, tag = "6")]
    pub index: u32,
    /// The request's metadata, as far as it is text.
    #[prost(map = "string, string", tag = "7")]
    pub headers: HashMap<String, String>,
    /// Where the request came from, as `ip:port`.
    #[prost(string, tag = "8")]
    pub peer_address: String,
    /// What the handshake came to; not set in plaintext.
    #[prost(message, optional, tag = "9")]
    pub tls: Option<EchoTls>,
    /// What the caller's token says, as JSON; empty without a good one.
    #[prost(string, tag = "10")]
    pub claims: String,
}

/// The TLS of a connection.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct EchoTls {
    /// The version, such as `TLSv1.3`.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The protocol that both sides agreed on.
    #[prost(string, tag = "2")]
    pub alpn: String,
    /// The name that the client asked for.
    #[prost(string, tag = "3")]
    pub sni: String,
}
