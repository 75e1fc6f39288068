//! Requests over HTTP/1, each over a connection of its own: how one is made, and how much is taken of the answer.

use std::net::IpAddr;

use anyhow::{Context, anyhow, bail};
use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

/// A connection to the first address of a host that takes one, of those that `may` lets. It is the one that was looked at which is
/// dialled.
pub(crate) async fn dial(
    host: &str,
    port: u16,
    may: impl Fn(IpAddr) -> Result<(), &'static str>,
) -> anyhow::Result<TcpStream> {
    let addresses = lookup_host((host, port)).await.with_context(|| format!("cannot look up {host}"))?;
    let mut why = anyhow!("{host} has no address");
    for address in addresses {
        why = match may(address.ip()) {
            Err(kind) => anyhow!("{host} is {}, {kind}: nothing is fetched from there", address.ip()),
            Ok(()) => match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => anyhow!("cannot connect to {host} ({address}): {error}"),
            },
        };
    }
    Err(why)
}

/// Sends a request. The connection ends with what drives it.
pub(crate) async fn send<S, B>(stream: S, request: Request<B>) -> anyhow::Result<(Response<Incoming>, JoinSet<()>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("HTTP")?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let response = sender.send_request(request).await.context("HTTP")?;
    Ok((response, driver))
}

/// What comes next of an answer; `None` at its end.
pub(crate) async fn frame(response: &mut Response<Incoming>) -> anyhow::Result<Option<Bytes>> {
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(bytes) = frame.context("the body ended early")?.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The whole body of an answer, or none of it.
pub(crate) async fn whole(mut response: Response<Incoming>, most: usize) -> anyhow::Result<Bytes> {
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > most) {
        bail!("more than {most} bytes");
    }
    let mut whole = Vec::new();
    while let Some(bytes) = frame(&mut response).await? {
        if whole.len() + bytes.len() > most {
            bail!("more than {most} bytes");
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole.into())
}
