//! The last part of an outbound request's way: a connection to the endpoint, and the exchange over it.
//!
//! The mesh's own connections wait in a pool for each endpoint ([`pool`]), attached to the endpoint's state, so they
//! outlive configuration and go away with their endpoint. A client that the application brought is another
//! [`Transport`]. Nothing outside this folder looks at a cluster's TLS: whoever wants a connection needs a
//! [`Security`], and only [`Security::of`] makes one.

mod check;
mod dial;
mod failure;
mod http1;
mod http2;
mod interim;
mod orca;
mod pool;
mod replay;
mod security;
mod upkeep;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use mesh_core::error::MeshError;
use mesh_core::model::Cluster;
use mesh_core::request_info::RequestInfo;
use mesh_core::state::EndpointState;
use mesh_core::trace::Tables;

use crate::body::{Body, BoxError};

pub(crate) use check::FAIL;
pub(crate) use dial::dial;
pub(crate) use failure::{Failure, FailureCause, is_success, outcome_of};
pub(crate) use pool::{close_idle, exchange, pooled};
pub(crate) use replay::{Replay, Sending};
pub(crate) use security::Security;
pub(crate) use upkeep::look_after;

/// The HTTP that an exchange speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

/// A connection to come.
pub(crate) type Connecting<C> = Pin<Box<dyn Future<Output = Result<C, MeshError>> + Send>>;

/// What takes a request to its endpoint: the mesh's own connections, or a client that the application brought.
pub(crate) trait Transport: Send + 'static {
    /// What one request has for itself while it is on its way.
    type Connection: Send + 'static;
    /// The response's body.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static;
    /// What an exchange fails with.
    type Error;
    /// A request on its way, until the head of its response is here. Dropping it gives the request up.
    type Exchange: Future<Output = Result<Response<Self::Body>, Self::Error>> + Send;
    /// Whether a request's extensions mean something to it, so that the next try has to have them.
    const READS_EXTENSIONS: bool;
    /// Whether it speaks TLS by itself where a request asks for `https`: for hosts outside of the mesh.
    const SPEAKS_TLS: bool;
    /// Whether it speaks the TLS that a cluster asks for.
    const SPEAKS_CLUSTER_TLS: bool;

    /// Gives a request the form in which it goes to the endpoints of this cluster. `host` is the usual `Host`, made
    /// before.
    fn form(
        &self,
        head: &mut Parts,
        cluster: &Cluster,
        info: &RequestInfo,
        host: Option<&HeaderValue>,
    ) -> Result<HttpVersion, MeshError>;

    /// A connection that can take a request at once.
    fn ready(
        &mut self,
        cluster: &Cluster,
        endpoint: &EndpointState,
        version: HttpVersion,
        security: Security,
    ) -> Option<Self::Connection>;

    /// A connection: one that is there, if `reuse` says so, or a new one. Where connections are shared or somebody
    /// else's, `reuse` has no meaning.
    fn connect(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<EndpointState>,
        version: HttpVersion,
        security: Security,
        reuse: bool,
    ) -> Connecting<Self::Connection>;

    /// Sends a request. It is on its way when this returns.
    fn send(
        &self,
        connection: &mut Self::Connection,
        request: Request<Body>,
        endpoint: &EndpointState,
    ) -> Self::Exchange;

    /// What becomes of new values in the tables of headers that the connection has.
    #[inline]
    fn tables(&self, _: &Self::Connection) -> Tables {
        Tables::Kept
    }

    /// The head of the answer is there.
    #[inline]
    fn answered(&self, _: &Self::Connection) {}

    /// What to make of a failed exchange. The connection ends here.
    fn failure(&self, error: Self::Error, connection: Option<Self::Connection>, is_idempotent: bool) -> Failure;

    /// Whether the cluster allows another request on a connection after the next one.
    fn may_go_on(&self, connection: &Self::Connection, cluster: &Cluster) -> bool;

    /// Leaves a connection to whoever has it as a tunnel from now on.
    fn hand_over(&self, connection: Self::Connection);

    /// Takes a connection back whose response has come to its end, and which may go on.
    fn release(&self, connection: Self::Connection, endpoint: &EndpointState);
}
