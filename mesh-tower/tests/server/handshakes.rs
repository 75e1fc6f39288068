//! The bytes before HTTP: handshakes in pieces, and a protocol that was not agreed on.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::mtls_support::{Authority, CLIENT, SERVER, id, with_tls};
use crate::server_support::frames::{END_HEADERS, END_STREAM, GET, PREFACE, frame, frames};
use crate::server_support::{Player, played, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_core::model::{ServerTls, UpstreamTls};
use mesh_core::tls::{client_config, server_name};
use mesh_tower::{Mesh, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, ClientConnection};
use tower_layer::Layer;

/// A server of the mesh that asks for mutual TLS, and says what it is sent of these headers.
async fn start(authority: &Authority) -> (Player, Mesh, SocketAddr) {
    let (player, source) = played();
    let mesh = Mesh::builder().source(source).credentials(authority.credentials(SERVER)).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    player.send(with_tls(address, ServerTls::Mutual));
    within(bound.serving()).await.unwrap();
    let app = tower::service_fn(|request: Request<Incoming>| {
        let seen = request.headers().keys().map(|name| format!("{name} ")).collect::<String>();
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("served {seen}"))))))
    });
    let layer = mesh.server_layer().trusted_proxies([id(CLIENT)]);
    tokio::spawn(server::serve(bound, layer.layer(app)).into_future());
    (player, mesh, address)
}

fn config(authority: &Authority, who: &str, alpn: &'static [u8]) -> Arc<ClientConfig> {
    let tls = UpstreamTls::with([id(SERVER)]);
    Arc::new(client_config(&authority.credentials(who), &tls, Some(alpn)).unwrap())
}

/// What a server says to these bytes, after a handshake in which this was agreed on.
async fn say(address: SocketAddr, config: Arc<ClientConfig>, said: &[u8]) -> Vec<u8> {
    let name = server_name(&UpstreamTls::with([id(SERVER)])).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = within(TlsConnector::from(config).connect(name, stream)).await.unwrap();
    let mut answer = Vec::new();
    // An end without a word of TLS is one, too.
    _ = within(stream.write_all(said)).await;
    _ = within(stream.read_to_end(&mut answer)).await;
    answer
}

const HTTP1: &[u8] = b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";

fn http2() -> Vec<u8> {
    [PREFACE, &frame(1, END_STREAM | END_HEADERS, 1, GET), &frame(7, 0, 0, &[0; 8])].concat()
}

#[tokio::test]
async fn m19_another_protocol_than_was_agreed_on_ends_the_connection_and_there_is_no_early_data() {
    let authority = Authority::new();
    let (_player, _mesh, address) = start(&authority).await;
    let say = async |alpn: &'static [u8], said: Vec<u8>| say(address, config(&authority, CLIENT, alpn), &said).await;
    assert!(say(b"http/1.1", HTTP1.to_vec()).await.starts_with(b"HTTP/1.1 200"));
    assert!(frames(&say(b"h2", http2()).await).iter().any(|(kind, stream, _)| (*kind, *stream) == (1, 1)));
    for (alpn, said) in [(&b"h2"[..], HTTP1.to_vec()), (b"http/1.1", http2())] {
        assert_eq!(say(alpn, said).await, b"", "{}", String::from_utf8_lossy(alpn));
    }
    assert!(!config(&authority, CLIENT, b"h2").enable_early_data);
    assert_eq!(authority.credentials(SERVER).server_config().max_early_data_size, 0);
}

#[tokio::test]
async fn a19_what_only_a_proxy_may_say_is_believed_of_the_proxies_that_are_named() {
    let authority = Authority::new();
    let (_player, _mesh, address) = start(&authority).await;
    let said = b"GET / HTTP/1.1\r\nhost: shop\r\nx-forwarded-client-cert: By=x\r\nconnection: close\r\n\r\n";
    for (who, expected) in [(CLIENT, true), ("spiffe://td/ns/shop/sa/other", false)] {
        let answer = say(address, config(&authority, who, b"http/1.1"), said).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.contains("x-forwarded-client-cert"), expected, "{who}: {answer}");
    }
}

/// The ClientHello of a good client: the message, without the record around it.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let name = server_name(&UpstreamTls::with([id(SERVER)])).unwrap();
    let mut client = ClientConnection::new(config(authority, CLIENT, b"h2"), name).unwrap();
    let mut record = Vec::new();
    client.write_tls(&mut record).unwrap();
    assert_eq!(record[0], HANDSHAKE);
    record.split_off(5)
}

const HANDSHAKE: u8 = 0x16;
const ALERT: u8 = 0x15;

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[HANDSHAKE, 3, 1], &length[..], part].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

/// What a server answers first to these bytes: the kind of a record, or `None` for the end.
async fn first_word(address: SocketAddr, said: &[u8]) -> Option<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(said).await.unwrap();
    within(stream.read_u8()).await.ok()
}

/// The kinds of the records that came.
fn kinds(mut answer: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = answer {
        kinds.push(*kind);
        answer = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default();
    }
    kinds
}

#[tokio::test]
async fn m16_a_handshake_in_pieces_is_read_or_refused_and_nothing_comes_with_it() {
    let authority = Authority::new();
    let (_player, _mesh, address) = start(&authority).await;
    let hello = client_hello(&authority);
    for pieces in [1, 2, 20] {
        let said = records(&hello, hello.len().div_ceil(pieces));
        assert_eq!(first_word(address, &said).await, Some(HANDSHAKE), "{pieces} pieces");
    }
    // The keys change behind a ClientHello, and no message may stand on both sides of that (RFC 8446, 5.1).
    let with_more = [&hello[..], &[20, 0, 0, 32]].concat();
    for said in [
        records(&with_more, with_more.len()),
        [records(&hello, hello.len()), records(&[20, 0, 0, 32], 4)].concat(),
        // A message without an end, and records without content.
        records(&[&[1, 0xff, 0xff, 0xff][..], &[0; 60_000]].concat(), 16_000),
        records(&[1], 1).into_iter().chain([HANDSHAKE, 3, 1, 0, 0].repeat(100)).collect(),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&said).await.unwrap();
        let mut answer = Vec::new();
        _ = within(stream.read_to_end(&mut answer)).await;
        // Behind a ServerHello, an alert is encrypted: it is in a record of application data (23).
        let last = kinds(&answer).pop();
        assert!(matches!(last, None | Some(ALERT | 23)), "{answer:?}");
    }
    let answer = say(address, config(&authority, CLIENT, b"http/1.1"), HTTP1).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "others are served");
}
