//! The way to etcd: one member at a time, over TLS by files that are read for every connection, and on to the next one when it
//! does not answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail, ensure};
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use mesh_core::model::{ForeignTls, Roots, Sni};
use mesh_core::printable::printable;
use mesh_core::request::is_this_machine;
use mesh_core::tls::{MaterialReader, foreign_config, foreign_name};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use super::proto::{
    AUTHENTICATE, AuthenticateRequest, AuthenticateResponse, LEASE_GRANT, LEASE_KEEP_ALIVE, LeaseGrantRequest,
    LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, RANGE, RangeRequest, RangeResponse, TXN,
    TxnRequest, TxnResponse, WATCH, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// How long it may take until a member speaks HTTP/2, and until it knows who asks.
const DIAL: Duration = Duration::from_secs(2);
/// How long an answer may take. While there is no leader, members wait for one that long.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer: a page of objects, of which etcd takes 1.5 MiB each.
const MOST_BYTES: usize = 256 << 20;

/// How to reach etcd.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    endpoints: Vec<Uri>,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    user: Option<(String, PathBuf)>,
}

impl Access {
    /// Its members, `https://HOST:PORT` each.
    ///
    /// # Errors
    /// One of them is no such URL, or would be spoken to in plaintext by way of a network.
    pub(crate) fn new(endpoints: &[String]) -> anyhow::Result<Access> {
        ensure!(!endpoints.is_empty(), "no member of etcd is named");
        let endpoints = endpoints.iter().map(|text| {
            // It is not told: it is a credential, and would be in every line of the log about this member.
            ensure!(
                !text.contains('@'),
                "a user in the URL of a member has no effect: --etcd-user and --etcd-password-file say who asks"
            );
            member_url(text).with_context(|| text.clone())
        });
        Ok(Access { endpoints: endpoints.collect::<Result<_, _>>()?, ca: None, identity: None, user: None })
    }

    /// Who vouches for its members, as PEM; those whom the system trusts unless set.
    pub(crate) fn ca(mut self, file: Option<PathBuf>) -> Access {
        self.ca = file;
        self
    }

    /// The certificate and the key that are shown.
    pub(crate) fn identity(mut self, files: Option<(PathBuf, PathBuf)>) -> Access {
        self.identity = files;
        self
    }

    /// A user of etcd's own, and the file that its password is in.
    pub(crate) fn user(mut self, user: Option<(String, PathBuf)>) -> Access {
        self.user = user;
        self
    }
}

fn member_url(text: &str) -> anyhow::Result<Uri> {
    let uri: Uri = text.parse().context("no URL")?;
    let host = uri.host().context("no host")?;
    ensure!(uri.path().trim_matches('/').is_empty() && uri.query().is_none(), "expected https://HOST:PORT");
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_this_machine(host) => Ok(uri),
        Some("http") => bail!("https:// is needed: whoever is on the way could change what the mesh is told"),
        _ => bail!("expected https://HOST:PORT"),
    }
}

/// Asks etcd.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    access: Access,
    reader: Arc<MaterialReader>,
    /// The member that is asked, once it is known.
    present: Mutex<Option<Member>>,
    /// Whose turn it is, counted on without an end.
    turn: AtomicUsize,
}

/// A member that answers.
#[derive(Clone, Debug)]
pub(super) struct Member {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    turn: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// etcd said no.
    Refused(String),
    /// Nobody answers.
    Lost(String),
    /// Nobody knows whether it was done.
    Unclear(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(why) | Failure::Lost(why) => f.write_str(why),
            Failure::Unclear(why) => write!(f, "{why}, and nobody knows whether it was done"),
        }
    }
}

impl std::error::Error for Failure {}

impl Client {
    /// Replicas begin with different members.
    pub(crate) fn new(access: Access) -> Client {
        let turn = AtomicUsize::new(fastrand::usize(..access.endpoints.len()));
        Client { shared: Arc::new(Shared { access, reader: Arc::default(), present: Mutex::default(), turn }) }
    }

    /// Who is asked, for people.
    pub(crate) fn name(&self) -> String {
        let all: Vec<String> =
            self.shared.access.endpoints.iter().map(|uri| uri.to_string().trim_end_matches('/').to_owned()).collect();
        all.join(",")
    }

    /// Reads keys, from whichever member answers.
    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        let mut why = String::new();
        for _ in 0..=self.shared.access.endpoints.len() {
            let member = self.member().await?;
            match member.range(request.clone()).await {
                Err(Failure::Lost(lost)) => {
                    why = lost;
                    self.leave(&member).await;
                }
                answer => return answer,
            }
        }
        Err(Failure::Lost(why))
    }

    /// Carries a transaction out, once: what was sent and not answered is not sent again.
    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Failure> {
        let member = self.member().await?;
        let answer = member.unary(TXN, request).await;
        if let Err(Failure::Lost(why)) = answer {
            self.leave(&member).await;
            return Err(Failure::Unclear(why));
        }
        answer
    }

    /// A lease of so many seconds.
    pub(super) async fn grant(&self, ttl: i64) -> Result<i64, Failure> {
        let member = self.member().await?;
        let answer: Result<LeaseGrantResponse, Failure> = member.unary(LEASE_GRANT, LeaseGrantRequest { ttl }).await;
        if answer.is_err() {
            self.leave(&member).await;
        }
        Ok(answer?.id)
    }

    /// Makes a lease last. Returns for how many seconds; 0 where it has ended.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<i64, Failure> {
        let member = self.member().await?;
        let asked = tokio_stream::once(LeaseKeepAliveRequest { id });
        let answered = async {
            let mut grpc = Grpc::new(member.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<LeaseKeepAliveRequest, LeaseKeepAliveResponse>::default();
            let path = PathAndQuery::from_static(LEASE_KEEP_ALIVE);
            let asked = member.request(asked.chain(tokio_stream::pending()));
            let mut answers = grpc.streaming(asked, path, codec).await?.into_inner();
            let answer = answers.message().await?;
            Ok(answer.map_or(0, |answer| answer.ttl))
        };
        let answered: Result<i64, Failure> = match timeout(PATIENCE, answered).await {
            Ok(answered) => answered.map_err(|status: Status| failure(&status)),
            Err(_) => Err(late()),
        };
        if answered.is_err() {
            self.leave(&member).await;
        }
        answered
    }

    /// The member that is asked now: the one of before, or the next one that answers.
    pub(super) async fn member(&self) -> Result<Member, Failure> {
        let mut present = self.shared.present.lock().await;
        if let Some(member) = &*present {
            return Ok(member.clone());
        }
        let mut why = Vec::new();
        for _ in &self.shared.access.endpoints {
            let turn = self.shared.turn.load(Ordering::Relaxed);
            let endpoints = &self.shared.access.endpoints;
            let Some(uri) = endpoints.get(turn % endpoints.len().max(1)) else { break };
            match timeout(DIAL, self.dial(uri, turn))
                .await
                .unwrap_or_else(|_| Err(anyhow!("no answer within {DIAL:?}")))
            {
                Ok(member) => {
                    *present = Some(member.clone());
                    return Ok(member);
                }
                Err(error) => why.push(format!("{uri}: {error:#}")),
            }
            self.shared.turn.fetch_add(1, Ordering::Relaxed);
        }
        Err(Failure::Lost(why.join("; ")))
    }

    /// It does not answer: the next one is asked from now on.
    pub(super) async fn leave(&self, member: &Member) {
        let mut present = self.shared.present.lock().await;
        if present.as_ref().is_some_and(|present| present.turn == member.turn) {
            *present = None;
            self.shared.turn.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn dial(&self, uri: &Uri, turn: usize) -> anyhow::Result<Member> {
        let authority = uri.authority().context("no host")?;
        // What is connected sees to TLS; an endpoint of this scheme would want to do it itself.
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?.origin(uri.clone());
        let channel = endpoint.connect_with_connector(Once(Some(self.connect(uri).await?))).await?;
        let mut member = Member { channel, token: None, turn };
        if let Some((name, file)) = &self.shared.access.user {
            let (name, file) = (name.clone(), file.clone());
            let read = spawn_blocking(move || std::fs::read_to_string(&file).map(Zeroizing::new));
            let password = read.await?.context("cannot read the password")?;
            let request = AuthenticateRequest { name, password: password.trim_end_matches(['\r', '\n']).to_owned() };
            let answer: AuthenticateResponse = member.unary(AUTHENTICATE, request).await?;
            let mut token: MetadataValue<Ascii> = answer.token.parse().context("a token that is none")?;
            token.set_sensitive(true);
            member.token = Some(token);
        }
        Ok(member)
    }

    async fn connect(&self, uri: &Uri) -> anyhow::Result<Box<dyn Io>> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(2379))).await?;
        stream.set_nodelay(true)?;
        if uri.scheme_str() == Some("http") {
            return Ok(Box::new(stream));
        }
        let roots = self.shared.access.ca.clone().map_or(Roots::System, Roots::File);
        let mut tls = ForeignTls::with(Sni::Fixed(host.into()), roots);
        tls.material.identity.clone_from(&self.shared.access.identity);
        let (tls, reader) = (Arc::new(tls), self.shared.reader.clone());
        let files = tls.material.clone();
        let trust =
            spawn_blocking(move || reader.read(&files, SystemTime::now())).await?.map_err(|it| anyhow!("{it}"))?;
        let config = foreign_config(&tls, &trust, Some(b"h2")).map_err(|invalid| anyhow!("{invalid}"))?;
        let name = foreign_name(&tls, None).map_err(|invalid| anyhow!("{invalid}"))?;
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("TLS")?))
    }
}

impl Member {
    /// Reads keys.
    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        self.unary(RANGE, request).await
    }

    /// Begins a watch. It is over when this member knows no leader, and changes would not reach it.
    pub(super) async fn watch(&self, watch: WatchCreateRequest) -> Result<Streaming<WatchResponse>, Failure> {
        let asked = tokio_stream::once(WatchRequest { create_request: Some(watch) });
        let mut request = self.request(asked.chain(tokio_stream::pending()));
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MOST_BYTES);
        let opening = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.streaming(request, PathAndQuery::from_static(WATCH), codec).await
        };
        let opened = timeout(PATIENCE, opening).await.map_err(|_| late())?;
        Ok(opened.map_err(|status| failure(&status))?.into_inner())
    }

    async fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MOST_BYTES);
        let asking = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(self.request(message), PathAndQuery::from_static(path), codec).await
        };
        let answered = timeout(PATIENCE, asking).await.map_err(|_| late())?;
        Ok(answered.map_err(|status| failure(&status))?.into_inner())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

fn late() -> Failure {
    Failure::Lost(format!("no answer within {PATIENCE:?}"))
}

/// What a status means: whoever says no in so many words has answered. A token that is not good any more is got anew with the
/// next connection.
pub(super) fn failure(status: &Status) -> Failure {
    const LONGEST: usize = 300;
    let why = printable(&status.message().chars().take(LONGEST).collect::<String>());
    match status.code() {
        Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted => {
            Failure::Refused(why)
        }
        Code::OutOfRange | Code::Unimplemented | Code::NotFound | Code::AlreadyExists => Failure::Refused(why),
        _ => Failure::Lost(why),
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connector for a connection that is there already: a channel that loses it has none any more.
struct Once(Option<Box<dyn Io>>);

impl tonic::codegen::Service<Uri> for Once {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let gone = || std::io::Error::new(std::io::ErrorKind::NotConnected, "the connection is gone");
        std::future::ready(self.0.take().map(TokioIo::new).ok_or_else(gone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_leaves_no_machine() {
        for good in [
            "https://etcd-1:2379",
            "https://10.0.0.1",
            "http://127.0.0.1:2379",
            "http://[::1]:2379",
            "http://[::ffff:127.0.0.1]:2379",
            "http://localhost",
        ] {
            assert!(member_url(good).is_ok(), "{good}");
        }
        for wrong in
            ["http://10.0.0.1:2379", "http://etcd:2379", "etcd:2379", "https://a/b", "https://a?b=c", "unix:///a", ""]
        {
            assert!(member_url(wrong).is_err(), "{wrong}");
        }
        let why = format!("{:#}", Access::new(&["http://user:secret@127.0.0.1:2379".to_owned()]).unwrap_err());
        assert!(why.contains("--etcd-user") && !why.contains("secret"), "{why}");
    }
}
