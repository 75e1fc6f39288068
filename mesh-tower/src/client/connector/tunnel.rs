//! A way through an HTTP proxy: CONNECT over HTTP/1.1 (RFC 9110, 9.3.6).

use std::time::Duration;

use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Tunnel;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest head of an answer: nothing of it is kept but its status.
const MOST: usize = 16 << 10;

/// Asks the proxy at the other end to go on with the connection to where the tunnel leads. Nothing of the caller's is sent before
/// it has said that it does.
///
/// # Errors
/// [`ErrorKind::ConnectFailure`] where it does not, not within this time, or what it answers is no HTTP.
pub(super) async fn through(
    proxy: &mut (impl AsyncRead + AsyncWrite + Unpin),
    tunnel: &Tunnel,
    timeout: Duration,
) -> Result<(), MeshError> {
    let failed = |what: String| {
        let to = &tunnel.authority;
        MeshError::new(ErrorKind::ConnectFailure, format!("the proxy has not connected to {to}: {what}"))
    };
    let asked = async {
        let to = &tunnel.authority;
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        proxy.write_all(request.as_bytes()).await.map_err(|error| failed("it went away".into()).caused_by(error))?;
        proxy.flush().await.map_err(|error| failed("it went away".into()).caused_by(error))?;
        let mut left = MOST;
        loop {
            let head = head(proxy, &mut left).await;
            let head = head.map_err(|error| failed("it gave no answer".into()).caused_by(error))?;
            match status(&head) {
                Some(200..=299) => return Ok(()),
                // Others come before the answer; this one would be the end of HTTP.
                Some(100 | 102..=199) => {}
                Some(status) => return Err(failed(format!("it answered {status}"))),
                None => return Err(failed("its answer is no HTTP/1.1".into())),
            }
        }
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(failed(format!("it gave no answer within {timeout:?}"))),
    }
}

/// The head of an answer. One byte at a time, for what comes behind it is the tunnel's.
async fn head(proxy: &mut (impl AsyncRead + Unpin), left: &mut usize) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(128);
    while !head.ends_with(b"\r\n\r\n") {
        *left = left.checked_sub(1).ok_or_else(|| std::io::Error::other("its head is too long"))?;
        head.push(proxy.read_u8().await?);
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, rest) = line.split_at_checked(3)?;
    let is_whole = digits.iter().all(u8::is_ascii_digit) && matches!(rest.first(), Some(b' ' | b'\r'));
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(answer: &[u8]) -> (Result<(), String>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(64 << 10);
        far.write_all(answer).await.expect("room");
        let tunnel = Tunnel::to("db.example.com:5432").expect("good");
        let outcome = through(&mut near, &tunnel, Duration::from_secs(5)).await.map_err(|error| error.to_string());
        drop(near.shutdown().await);
        let mut request = Vec::new();
        far.read_to_end(&mut request).await.expect("readable");
        assert_eq!(request, b"CONNECT db.example.com:5432 HTTP/1.1\r\nHost: db.example.com:5432\r\n\r\n");
        let mut rest = Vec::new();
        drop(far);
        near.read_to_end(&mut rest).await.expect("readable");
        (outcome, rest)
    }

    #[tokio::test]
    async fn what_comes_behind_the_answer_is_of_the_tunnel_and_nothing_passes_without_one() {
        for answer in [
            "HTTP/1.1 200 OK\r\nVia: p\r\n\r\n",
            "HTTP/1.0 200\r\n\r\n",
            "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 x\r\n\r\n",
        ] {
            let (outcome, rest) = asked(format!("{answer}hello").as_bytes()).await;
            assert_eq!((outcome, rest.as_slice()), (Ok(()), b"hello".as_slice()), "{answer:?}");
        }
        for (answer, why) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "it answered 407"),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "it answered 101"),
            ("HTTP/1.1 2000 OK\r\n\r\n", "no HTTP/1.1"),
            ("SSH-2.0-x\r\n\r\n", "no HTTP/1.1"),
            ("HTTP/2 200 OK\r\n\r\n", "no HTTP/1.1"),
        ] {
            let (outcome, _) = asked(answer.as_bytes()).await;
            assert!(outcome.as_ref().is_err_and(|said| said.contains(why)), "{answer:?}: {outcome:?}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'a'; MOST]].concat();
        assert!(asked(&endless).await.0.is_err());
    }
}
