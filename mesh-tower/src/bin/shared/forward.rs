//! What both directions do with a message that goes on: fields of its connection stay behind (RFC 9110, 7.6.1), and where both
//! sides agree to speak another protocol, their bytes are carried.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_tower::body::{Body, BoxError};
use mesh_tower::core::identity::SpiffeId;
use mesh_tower::core::request::client_of;
use mesh_tower::server::{ConnectionInfo, ResponseFuture, ServerBody, ServerLayer, ServerService};
use mesh_tower::{MeshError, reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tower_layer::Layer;
use tower_service::Service;

/// The answer to a request, whatever came of it.
pub(crate) type Answer = Response<Body>;
/// An answer to come.
type Answering = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

/// Fields about a connection besides those that the others here have names for.
const OF_THE_CONNECTION: [HeaderName; 4] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("proxy-authentication-info"),
];

/// Takes off the fields that `Connection` names. Before anybody decides by them: what does not go on must not count.
///
/// # Errors
/// Where it names one that says what the message is, or for whom.
fn take_named(headers: &mut HeaderMap) -> Result<(), String> {
    if !headers.contains_key(CONNECTION) {
        return Ok(());
    }
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|it| !it.is_empty()) {
            let name = HeaderName::from_bytes(option).map_err(|_| "malformed Connection header".to_owned())?;
            if [HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name) {
                return Err(format!("the Connection header names {name}"));
            }
            // They are looked at later.
            if ![UPGRADE, TE].contains(&name) {
                named.push(name);
            }
        }
    }
    named.iter().for_each(|name| _ = headers.remove(name));
    Ok(())
}

/// A server that decides by nothing that does not go on.
#[derive(Clone)]
pub(crate) struct Behind {
    service: ServerService<Answers>,
    layer: ServerLayer,
    /// What is made of requests before anybody decides by them.
    sees: Sees,
}

/// Makes of a request what is to be made of it before anybody decides by it.
type Sees = fn(&mut Request<Body>, &ServerLayer);

/// Answers requests, whatever comes.
#[derive(Clone)]
pub(crate) struct Answers(Arc<dyn Fn(Request<Body>) -> Answering + Send + Sync>);

/// Why a message is malformed: whoever would forward it refuses it instead.
#[derive(Clone, Debug)]
struct Malformed(String);

impl Behind {
    /// `sees` is what is made of requests before anybody decides by them.
    pub(crate) fn new<F>(
        layer: &ServerLayer,
        sees: Sees,
        answer: impl Fn(Request<Body>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let answer = move |request| -> Answering {
            let answer = answer(request);
            Box::pin(async { Ok(answer.await) })
        };
        Behind { service: layer.layer(Answers(Arc::new(answer))), layer: layer.clone(), sees }
    }
}

impl Service<Request<Body>> for Answers {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        (self.0)(request)
    }
}

impl Service<Request<Body>> for Behind {
    type Response = Response<ServerBody<Body>>;
    type Error = Infallible;
    type Future = ResponseFuture<Answers, Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Err(why) = take_named(request.headers_mut()) {
            request.extensions_mut().insert(Malformed(why));
        }
        (self.sees)(&mut request, &self.layer);
        self.service.call(request)
    }
}

/// The answer to a request that is malformed. Its connection ends with it, as after all others of this kind.
pub(crate) fn malformed<B>(request: &Request<B>) -> Option<Answer> {
    let Malformed(why) = request.extensions().get()?;
    let mut answer = refusal(StatusCode::BAD_REQUEST, why);
    if request.version() == Version::HTTP_11 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Some(answer)
}

/// The answer to a request that a server does not take: it is malformed, or wants a tunnel.
pub(crate) fn not_for_a_server<B>(request: &Request<B>) -> Option<Answer> {
    let no_proxy = || refusal(StatusCode::METHOD_NOT_ALLOWED, "there is no proxy here");
    malformed(request).or_else(|| (*request.method() == Method::CONNECT).then(no_proxy))
}

/// Takes off what is about the connection that a message came over. Where it goes on to be upgraded, that stays.
fn take_hop_by_hop(headers: &mut HeaderMap, is_upgrade: bool) {
    let wants_trailers = lists(headers, TE, b"trailers");
    // Where both say where a message ends, only the one that was heeded may (RFC 9112, 6.3).
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    [CONNECTION, TE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION]
        .iter()
        .chain(&OF_THE_CONNECTION)
        .for_each(|name| _ = headers.remove(name));
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    match is_upgrade {
        true => _ = headers.insert(CONNECTION, HeaderValue::from_static("upgrade")),
        false => _ = headers.remove(UPGRADE),
    }
}

/// Whether a word is in a list, whatever its case.
fn lists(headers: &HeaderMap, name: HeaderName, word: &[u8]) -> bool {
    let mut words = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|one| one.trim_ascii().eq_ignore_ascii_case(word))
}

/// Who the client is, as Envoy tells it.
pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Tells who called, in Envoy's words, to whom it called: nothing where nobody has shown who he is. What the caller said of himself
/// is taken off.
pub(crate) fn tell_caller(headers: &mut HeaderMap, own: Option<&SpiffeId>) {
    headers.remove(XFCC);
    let connection = ConnectionInfo::current();
    let Some(tls) = connection.as_deref().and_then(ConnectionInfo::tls) else { return };
    let Some(fingerprint) = tls.fingerprint else { return };
    let mut value = String::with_capacity(256);
    if let Some(own) = own {
        _ = write!(value, "By={own};");
    }
    value.push_str("Hash=");
    fingerprint.iter().for_each(|byte| _ = write!(value, "{byte:02x}"));
    if let Some(peer) = &tls.identity {
        // Certificates of workloads name nobody in their subject, and no SPIFFE ID has a letter that would have to be quoted.
        _ = write!(value, ";Subject=\"\";URI={peer}");
    }
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(XFCC, value);
    }
}

/// Whether nothing but a WebSocket is asked for, as Istio's sidecars have it. Another version of HTTP would be requests that no policy sees.
/// One that the connection does not name may be from behind a proxy that knows of no upgrade, and would read the bytes behind it as
/// answers (RFC 9110, 7.8).
fn is_websocket(headers: &HeaderMap) -> bool {
    let mut asked = headers.get_all(UPGRADE).iter();
    asked.next().is_some_and(|protocol| protocol.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
        && asked.next().is_none()
        && lists(headers, CONNECTION, b"upgrade")
}

/// Makes a request ready to go on. Where its client asks for another protocol, this is what its connection becomes.
pub(crate) fn prepare<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
    // In HTTP/1.0 it means nothing (RFC 9110, 7.8), and HTTP/2 has none.
    let is_upgrade = request.version() == Version::HTTP_11 && is_websocket(request.headers());
    take_hop_by_hop(request.headers_mut(), is_upgrade);
    is_upgrade.then(|| hyper::upgrade::on(request))
}

/// The answer as the client gets it. What is a tunnel from here on is one of the share of `client`, if that is named.
pub(crate) fn answer<B>(
    answered: Result<Response<B>, MeshError>,
    is_grpc: bool,
    upgrade: Option<OnUpgrade>,
    tunnels: &Tunnels,
    client: Option<IpAddr>,
) -> Answer
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => return reply::error(&error, is_grpc).map(Body::from),
    };
    let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if is_switching {
        let Some(room) = tunnels.room(client) else { return too_many() };
        let upstream = hyper::upgrade::on(&mut response);
        if let Some(upgrade) = upgrade {
            tunnels.carry(room, async { Ok((opened(upgrade).await?, opened(upstream).await?)) });
        }
    }
    // A server that names others of its fields means them for us.
    if take_named(response.headers_mut()).is_err() {
        return refusal(StatusCode::BAD_GATEWAY, "the answer's Connection header names what says where it ends");
    }
    take_hop_by_hop(response.headers_mut(), is_switching);
    *response.version_mut() = Version::HTTP_11;
    response.map(Body::new)
}

/// An answer of our own.
pub(crate) fn refusal(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// There is no room for one tunnel more.
pub(crate) fn too_many() -> Answer {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "as many tunnels are open as there may be")
}

/// The bytes of a connection that was upgraded.
pub(crate) async fn opened(upgrade: OnUpgrade) -> io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    upgrade.await.map(TokioIo::new).map_err(io::Error::other)
}

/// How many tunnels there may be at once.
const MOST: usize = 4096;

/// Connections whose bytes are carried from one side to the other. They end when this is dropped for the last time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tunnels {
    tasks: Arc<Mutex<JoinSet<()>>>,
    seats: Arc<Mutex<Seats>>,
}

/// How many there are, and whose.
#[derive(Debug, Default)]
struct Seats {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

impl Seats {
    /// One more of this client, where there is room. A client may have as many as it leaves free, so that there are some for others,
    /// however many connections it makes.
    fn take(&mut self, client: Option<IpAddr>) -> bool {
        let free = MOST - self.all;
        let has = client.map_or(0, |client| self.of.get(&client).copied().unwrap_or(0));
        let has_room = has < free;
        if has_room {
            self.all += 1;
            if let Some(client) = client {
                *self.of.entry(client).or_default() += 1;
            }
        }
        has_room
    }

    fn give_back(&mut self, client: Option<IpAddr>) {
        self.all -= 1;
        if let Some(client) = client
            && let Some(has) = self.of.get_mut(&client)
        {
            *has -= 1;
            if *has == 0 {
                self.of.remove(&client);
            }
        }
    }
}

/// Room for one tunnel, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    seats: Arc<Mutex<Seats>>,
    client: Option<IpAddr>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.client);
    }
}

impl Tunnels {
    /// Room for one more; where a client is named, of its share.
    pub(crate) fn room(&self, client: Option<IpAddr>) -> Option<Room> {
        let client = client.map(client_of);
        let has_room = self.seats.lock().unwrap_or_else(PoisonError::into_inner).take(client);
        has_room.then(|| Room { seats: Arc::clone(&self.seats), client })
    }

    /// Carries bytes between both ends, once they are there.
    pub(crate) fn carry<A, B>(&self, room: Room, ends: impl Future<Output = io::Result<(A, B)>> + Send + 'static)
    where
        A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let _room = room;
            let carried = async {
                let (mut one, mut other) = ends.await?;
                tokio::io::copy_bidirectional(&mut one, &mut other).await
            };
            if let Err(reason) = carried.await {
                tracing::debug!(%reason, "a tunnel broke");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn a_request_becomes_a_websocket_and_nothing_else() {
        for (asked, is_upgrade) in [
            (&["websocket"][..], true),
            (&["WebSocket"], true),
            (&["h2c"], false),
            (&["HTTP/2.0"], false),
            (&["tls/1.2"], false),
            (&["websocket, h2c"], false),
            (&["websocket", "h2c"], false),
            (&[], false),
        ] {
            let mut request = Request::get("http://app/").header(CONNECTION, "upgrade").body(()).unwrap();
            request.headers_mut().extend(asked.iter().map(|one| (UPGRADE, HeaderValue::from_static(one))));
            assert_eq!(prepare(&mut request).is_some(), is_upgrade, "{asked:?}");
            assert_eq!(request.headers().contains_key(UPGRADE), is_upgrade, "{asked:?}");
            assert_eq!(request.headers().contains_key(CONNECTION), is_upgrade, "{asked:?}");
        }
        for (named, is_upgrade) in
            [("Upgrade", true), ("keep-alive, upgrade", true), ("keep-alive", false), ("", false)]
        {
            let request = Request::get("http://app/").header(UPGRADE, "websocket").header(CONNECTION, named);
            assert_eq!(prepare(&mut request.body(()).unwrap()).is_some(), is_upgrade, "{named}");
        }
    }

    #[test]
    fn a_client_has_as_many_tunnels_as_it_leaves_free() {
        let tunnels = Tunnels::default();
        let [one, other] = [1, 2].map(|last| Some(IpAddr::from([10, 0, 0, last])));
        let taken = |client| std::iter::from_fn(|| tunnels.room(client)).collect::<Vec<_>>();
        let of_one = taken(one);
        let of_other = taken(other);
        assert_eq!((of_one.len(), of_other.len()), (MOST / 2, MOST / 4));
        // Whoever is nobody's client has all that is left.
        assert_eq!(taken(None).len(), MOST / 4);
        drop((of_one, of_other));
        assert_eq!(tunnels.seats.lock().unwrap().of.len(), 0);
        assert_eq!(taken(None).len(), MOST);
    }

    #[test]
    fn a_message_says_once_where_it_ends() {
        let mut both = headers(&[("transfer-encoding", "chunked"), ("content-length", "3"), ("x", "1")]);
        take_hop_by_hop(&mut both, false);
        assert_eq!(names(&both), ["x"]);
        let mut one = headers(&[("content-length", "3")]);
        take_hop_by_hop(&mut one, false);
        assert_eq!(names(&one), ["content-length"]);
    }

    #[test]
    fn what_connection_names_does_not_go_on_and_the_frame_of_a_message_is_not_for_it_to_name() {
        let mut named = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("x", "3"),
        ]);
        take_named(&mut named).unwrap();
        take_hop_by_hop(&mut named, false);
        assert_eq!(names(&named), ["x"]);
        for wrong in ["host", "Content-Length", "close, transfer-encoding", "a b", "é"] {
            let mut wrong_ones = HeaderMap::new();
            wrong_ones.insert(CONNECTION, HeaderValue::from_bytes(wrong.as_bytes()).unwrap());
            assert!(take_named(&mut wrong_ones).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_of_the_connection_stay_behind_but_for_trailers_and_an_upgrade_that_is_asked_for() {
        let all = [
            ("connection", "keep-alive, upgrade, te"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eDp5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, Trailers"),
            ("upgrade", "websocket"),
        ];
        let mut plain = headers(&all);
        take_named(&mut plain).unwrap();
        take_hop_by_hop(&mut plain, false);
        assert_eq!(plain, headers(&[("te", "trailers")]));
        let mut upgraded = headers(&all);
        take_named(&mut upgraded).unwrap();
        take_hop_by_hop(&mut upgraded, true);
        assert_eq!(upgraded, headers(&[("te", "trailers"), ("connection", "upgrade"), ("upgrade", "websocket")]));
    }
}
