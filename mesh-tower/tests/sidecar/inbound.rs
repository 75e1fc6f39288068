//! What the program gets.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tower::body::Body;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

/// A sidecar in front of this program, ready, and where it is called.
async fn before(control: &Embedded, program: SocketAddr, options: &[&str]) -> (Sidecar, SocketAddr) {
    let port = program.port().to_string();
    let options = [&["--app-port", &port], options].concat();
    let mut sidecar = Sidecar::start(control, "app", &options, "sleep 1000");
    let inbound = sidecar.ready().await;
    (sidecar, inbound)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_is_told_who_calls_and_never_by_the_caller() {
    let control = control("").await;
    let program = program(ok).await;
    let (_sidecar, inbound) = before(&control, program, &[]).await;
    let caller = mesh(&control, "caller").start().unwrap();
    let request = Request::get("http://app/who")
        .header("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin")
        .header("x-secret", "1")
        .header("connection", "x-secret")
        .body(Body::empty());
    let response = within(caller.client().request(request.unwrap())).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let head = String::from_utf8(body.to_vec()).unwrap();
    assert!(head.starts_with("GET /who HTTP/1.1\r\n") && head.contains("\r\nhost: app\r\n"), "{head}");
    let told: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).collect();
    let [told] = told[..] else { panic!("{head}") };
    let parts: Vec<&str> = told.split(';').collect();
    let [by, hash, subject, uri] = parts[..] else { panic!("{told}") };
    assert_eq!(by, "By=spiffe://cluster.local/ns/default/sa/app");
    let digits = hash.strip_prefix("Hash=").unwrap();
    assert!(digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hash}");
    assert_eq!((subject, uri), ("Subject=\"\"", "URI=spiffe://cluster.local/ns/default/sa/caller"));
    assert!(!head.contains("x-secret"), "{head}");
    // Whoever comes without a certificate gets no answer at all.
    assert_eq!(exchange(inbound, "GET / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n").await, "");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_can_be_called_past_the_mesh_is_told_of() {
    let control = control("").await;
    for (address, is_told) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let mut sidecar = Sidecar::start(&control, "app", &["--app-port", &port], "sleep 1000");
        let mut said = String::new();
        while !said.contains("ready: ") {
            said += &within(sidecar.stderr.next_line()).await.unwrap().unwrap();
        }
        assert_eq!(said.contains("past the mesh"), is_told, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_decide_by_what_the_program_gets() {
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: app}
spec:
  selector: {matchLabels: {app: app}}
  rules:
  - {from: [{source: {principals: [cluster.local/ns/default/sa/caller]}}], to: [{operation: {paths: [/open*]}}]}
  - when: [{key: 'request.headers[x-pass]', values: ['1']}]
";
    let control = control(policy).await;
    let program = program(|head| ok(head.lines().next().unwrap())).await;
    let (_sidecar, _) = before(&control, program, &[]).await;
    let status = async |account: &str, path: &str, headers: &[(&str, &str)]| {
        let caller = mesh(&control, account).start().unwrap();
        let mut request = Request::get(format!("http://app{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        within(caller.client().request(request.body(Body::empty()).unwrap())).await.unwrap().status().as_u16()
    };
    assert_eq!(status("caller", "/open", &[]).await, 200);
    assert_eq!(status("caller", "/open/%2e%2e/admin", &[]).await, 403);
    assert_eq!(status("caller", "/admin", &[]).await, 403);
    assert_eq!(status("somebody", "/open", &[]).await, 403);
    assert_eq!(status("somebody", "/admin", &[("x-pass", "1")]).await, 200);
    // What does not go on must not let in.
    assert_eq!(status("somebody", "/admin", &[("x-pass", "1"), ("connection", "x-pass")]).await, 403);
}

/// A program of HTTP/2 that answers with the body that it gets, as it comes, and with trailers.
async fn http2_program() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = hyper::service::service_fn(|request: Request<Incoming>| async move {
        assert_eq!((request.version(), request.uri().host()), (Version::HTTP_2, Some("app")));
        let (sender, frames) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    sender.send(Ok::<_, std::io::Error>(Frame::data(data))).await.unwrap();
                }
            }
            let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
            sender.send(Ok(Frame::trailers(HeaderMap::from_iter(status)))).await.unwrap();
        });
        let response = Response::builder().header("content-type", "application/grpc");
        response.body(StreamBody::new(ReceiverStream::new(frames)))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), echo));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_streams_both_ways_and_ends_with_its_trailers() {
    let control = control("").await;
    let (_sidecar, _) = before(&control, http2_program().await, &[]).await;
    let caller = mesh(&control, "caller").start().unwrap();
    let (sender, frames) = tokio::sync::mpsc::channel::<Result<_, std::io::Error>>(1);
    let request = Request::post("http://app/a.B/C").version(Version::HTTP_2).header("content-type", "application/grpc");
    let request =
        request.header("te", "trailers").body(Body::new(StreamBody::new(ReceiverStream::new(frames)))).unwrap();
    let mut body = within(caller.client().request(request)).await.unwrap().into_body();
    for message in ["one", "two"] {
        sender.send(Ok(Frame::data(Bytes::from(message)))).await.unwrap();
        let frame = within(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(sender);
    let trailers = within(body.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_http2_gets_everything_by_it_and_one_of_bytes_whatever_comes() {
    let control = control("").await;
    let caller = mesh(&control, "caller").start().unwrap();
    let (sidecar, _) = before(&control, http2_program().await, &["--app-protocol", "http2"]).await;
    let request = Request::post("http://app/").body(Full::new(Bytes::from("hello"))).unwrap();
    let response = within(caller.client().request(request)).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    drop(sidecar);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut reader, mut writer) = stream.split();
            _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
    });
    let control = self::control("").await;
    let caller = mesh(&control, "caller").start().unwrap();
    let (_sidecar, _) = before(&control, program, &["--app-protocol", "tcp"]).await;
    let mut stream = within(caller.connect("app", 80)).await.unwrap();
    stream.write_all(b"bytes").await.unwrap();
    let mut back = [0; 5];
    within(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_and_an_upgrade_of_the_program_pass_or_do_no_harm() {
    let control = control("").await;
    let program = program(|head| match head.contains("\r\nupgrade: ") {
        true => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nHELLO".to_owned(),
        false => format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{}", ok("after the hint")),
    })
    .await;
    let (_sidecar, _) = before(&control, program, &[]).await;
    let caller = mesh(&control, "caller").start().unwrap();
    let response = within(caller.client().get("http://app/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "after the hint");
    let request = Request::get("http://app/").header("connection", "upgrade").header("upgrade", "websocket");
    let mut response = within(caller.client().request(request.body(Body::empty()).unwrap())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut upgraded = TokioIo::new(within(hyper::upgrade::on(&mut response)).await.unwrap());
    let mut hello = [0; 5];
    within(upgraded.read_exact(&mut hello)).await.unwrap();
    assert_eq!(&hello, b"HELLO");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_hangs_up_is_a_status_and_not_an_end() {
    let control = control("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let program = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Some(head) = head(&mut stream).await
                    && head.starts_with("GET /well")
                {
                    stream.write_all(ok("well").as_bytes()).await.unwrap();
                }
            });
        }
    });
    let (_sidecar, _) = before(&control, program, &[]).await;
    let caller = mesh(&control, "caller").start().unwrap();
    for (path, status) in [("/ill", 503), ("/well", 200)] {
        let response = within(caller.client().get(format!("http://app{path}"))).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
    }
}
