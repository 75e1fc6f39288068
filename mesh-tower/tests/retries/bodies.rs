//! What of a request's body comes again with a retry.

use bytes::Bytes;
use http::{Request, Version};
use mesh_core::error::ErrorKind;
use mesh_tower::body::Body;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::world::{World, retries, rule, streamed};

fn post(version: Version, path: &str, body: Body) -> Request<Body> {
    let port = if version == Version::HTTP_2 { 81 } else { 80 };
    Request::post(format!("http://web.example.com:{port}{path}")).body(body).unwrap()
}

#[tokio::test]
async fn every_try_has_the_whole_body_however_it_is_made() {
    let world = World::new(2, &retries("attempts: 2, retryOn: '5xx', backoff: 1ms")).await;
    let large = vec![b'x'; 50_000];
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for whole in [&b""[..], b"a body", &large] {
            let pieces: Vec<Bytes> = whole.chunks(20_000).map(Bytes::copy_from_slice).collect();
            for body in [
                |whole: &[u8], _: &[Bytes]| Body::from(whole.to_vec()),
                |_: &[u8], pieces: &[Bytes]| streamed(pieces.to_vec()),
            ] {
                for failure in ["status/503", "reset"] {
                    world.log.take();
                    let path = format!("/then-ok/2/{failure}");
                    let request = post(version, &path, body(whole, &pieces));
                    let (status, echoed) = world.ask(request).await.unwrap_or_else(|error| panic!("{path}: {error}"));
                    assert_eq!((status.as_u16(), &*echoed == whole), (200, true), "{version:?} {path}");
                    let bodies = world.log.take().into_iter().map(|seen| seen.body);
                    let whole = Bytes::copy_from_slice(whole);
                    assert!(bodies.eq(vec![Some(whole); 3]), "{version:?} {path}");
                }
            }
        }
    }
}

/// The bar of Istio: a refused stream of a call, whose body is a stream, is tried again under the default policy.
#[tokio::test]
async fn a_refused_stream_is_tried_again_with_a_body_that_is_streamed() {
    for yaml in ["".to_owned(), rule("")] {
        let world = World::new(2, &yaml).await;
        for is_grpc in [true, false] {
            world.log.take();
            let mut request = post(Version::HTTP_2, "/then-ok/1/refuse", streamed(vec!["mess".into(), "age".into()]));
            if is_grpc {
                request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            }
            let (status, echoed) = world.ask(request).await.unwrap();
            assert_eq!((status.as_u16(), &*echoed, world.log.take().len()), (200, &b"message"[..], 2));
        }
    }
}

#[tokio::test]
async fn more_of_a_stream_than_is_kept_is_sent_once_and_the_answer_stands() {
    let world = World::new(2, &retries("attempts: 2, retryOn: '5xx', backoff: 1ms")).await;
    let piece = Bytes::from(vec![b'x'; 40_000]);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (pieces, tries) in [(1, 3), (2, 1)] {
            let body = streamed(vec![piece.clone(); pieces]);
            assert_eq!(world.tries(post(version, "/status/503", body)).await, (tries, tries as usize), "{pieces}");
        }
        let (status, _) = world.ask(post(version, "/ok", streamed(vec![piece.clone(); 50]))).await.unwrap();
        assert_eq!(status, 200);
        let error = world.ask(post(version, "/reset", streamed(vec![piece.clone(); 2]))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost);
        assert!(error.to_string().contains("not tried again: its body is not there any more"), "{error}");
        // What is whole to begin with costs nothing to keep.
        let whole = Body::from(vec![b'x'; 1 << 20]);
        assert_eq!(world.tries(post(version, "/status/503", whole)).await, (3, 3));
    }
}

/// An answer may come before the body has; the next try goes on where the application is by then.
#[tokio::test]
async fn a_body_that_is_still_being_made_goes_on_with_the_next_try() {
    let world = World::new(2, &retries("attempts: 1, retryOn: '5xx', backoff: 1ms")).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        world.log.take();
        let (pieces, body) = mpsc::channel(1);
        let body = Body::new(http_body_util::StreamBody::new(ReceiverStream::new(body)));
        let piece = |text: &'static str| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from(text)));
        pieces.send(piece("first")).await.unwrap();
        let asked = world.ask(post(version, "/then-ok/1/status/503?unread", body));
        let made = async {
            // The first try is answered before there is any more; the second one waits for it.
            let mut seen = 0;
            while seen < 2 {
                tokio::task::yield_now().await;
                seen = world.log.seen();
            }
            pieces.send(piece(" second")).await.unwrap();
            drop(pieces);
        };
        let (answer, ()) = tokio::join!(asked, made);
        let (status, echoed) = answer.unwrap();
        assert_eq!((status.as_u16(), &*echoed), (200, &b"first second"[..]), "{version:?}");
    }
}
