//! The only endpoint of a service leaves, and takes along who may answer for it: from YAML by an embedded control plane to
//! sockets under mutual TLS, with a request under way.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::Mesh;
use mesh_tower::client::ResponseBody;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_layer::Layer;

use crate::server_support::within;
use crate::shop::workload;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";

/// What a client sees of it is newer than everything before.
const PROBE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - {match: [{uri: {exact: /probe}}], directResponse: {status: 218}}
  - {route: [{destination: {host: reviews}}]}
";

fn rule(tls: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: shop}}
spec: {{host: reviews, trafficPolicy: {{tls: {tls}}}}}
"
    )
}

/// Names somebody whom nobody is.
fn of_others() -> String {
    rule("{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/other']}")
}

type Chunks = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A service with one endpoint, which has begun to answer one request.
struct Shop {
    control: Embedded,
    server: Mesh,
    client: Mesh,
    chunks: Chunks,
    answer: ResponseBody,
}

impl Shop {
    async fn open(rules: &str) -> Shop {
        let control =
            Embedded::start(Config::yaml(format!("{REVIEWS}---{rules}")), Options::default().dev()).await.unwrap();
        let server = workload(&control, "reviews");
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let opened = Arc::<Mutex<Vec<Chunks>>>::default();
        let answers = Arc::clone(&opened);
        let app = tower::service_fn(move |_: http::Request<hyper::body::Incoming>| {
            let (chunks, body) = mpsc::channel(8);
            answers.lock().unwrap().push(chunks);
            std::future::ready(Ok::<_, Infallible>(http::Response::new(StreamBody::new(ReceiverStream::new(body)))))
        });
        tokio::spawn(mesh_tower::server::serve(listener, server.server_layer().layer(app)).into_future());
        within(server.serving()).await.unwrap();
        let client = workload(&control, "web");
        let answer = within(async {
            loop {
                match client.client().get("http://reviews.shop:9080/").await {
                    Ok(answer) if answer.status().is_success() => return answer.into_body(),
                    _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                }
            }
        });
        let answer = answer.await;
        let chunks = opened.lock().unwrap().pop().expect("the request has reached the server");
        let mut shop = Shop { control, server, client, chunks, answer };
        shop.goes_on().await;
        shop
    }

    async fn goes_on(&mut self) {
        self.chunks.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.expect("the server sends it");
        let frame = within(self.answer.frame()).await.expect("it has no end").expect("it goes on");
        assert_eq!(frame.into_data().unwrap(), "more");
    }

    async fn ends_well(self) {
        drop(self.chunks);
        assert_eq!(within(self.answer.collect()).await.expect("it has an end").to_bytes(), "");
    }

    async fn cut(mut self) {
        let end = within(self.answer.frame()).await;
        assert!(matches!(end, Some(Err(_))), "{end:?}");
    }

    /// The endpoint begins to drain; ends once the client has taken in that nobody may answer any more.
    async fn leaves(&self) {
        let drain = self.server.drain().clone();
        tokio::spawn(async move { drain.begin().await });
        within(async {
            while !self.control.status().workloads.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.control.set_yaml("probe.yaml", PROBE).unwrap();
        within(async {
            loop {
                let answer = self.client.client().get("http://reviews.shop:9080/probe").await;
                if answer.is_ok_and(|answer| answer.status() == 218) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        let more = within(self.client.client().get("http://reviews.shop:9080/")).await;
        assert!(more.is_err(), "nothing new is sent: {more:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_only_endpoint_was_asked_it_answers_to_the_end_when_it_drains() {
    for rules in ["", &*rule("{mode: ISTIO_MUTUAL}")] {
        let mut shop = Shop::open(rules).await;
        shop.leaves().await;
        for _ in 0..3 {
            shop.goes_on().await;
        }
        shop.ends_well().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_names_others_cuts_it_off_whether_it_has_left_or_not() {
    for leaves in [false, true] {
        let mut shop = Shop::open("").await;
        if leaves {
            shop.leaves().await;
            shop.goes_on().await;
        }
        shop.control.set_yaml("rule.yaml", &of_others()).unwrap();
        shop.cut().await;
    }
}
