//! `mesh-control trace` as people run it, against a server in a process of its own.

use std::time::{Duration, Instant};

use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use crate::process::{Control, gone, output, text};
use crate::support::PATIENCE;

/// What a POST to the status port is answered with: the first line.
async fn post(status: &str, path: &str, content_type: &str, body: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(status).await.unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// The workload `web`, a process of so many.
fn web(xds: &str, number: usize) -> Mesh {
    let bootstrap = Bootstrap::new(xds)
        .node_id(format!("mesh~127.0.0.1~web-{number}.shop~shop.svc.cluster.local"))
        .metadata("NAMESPACE", "shop")
        .metadata("WORKLOAD_NAME", "web")
        .metadata("LABELS", json!({"app": "web"}));
    Mesh::builder().source(XdsSource::new(bootstrap)).cold_start_wait(PATIENCE).start().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_says_why_a_request_went_as_it_went_and_no_page_of_a_browser_can_ask_for_it() {
    let dir = gone();
    let (_control, xds, status) = Control::listening(dir.path());

    // What a form can send, and what is no question.
    for (content_type, body, expected) in [
        ("text/plain", r#"{"to": "a"}"#, " 415 "),
        ("application/x-www-form-urlencoded", "to=a", " 415 "),
        ("application/json", r#"{"to": "a", "next": 0}"#, " 400 "),
        ("application/json", r#"{"to": "a", "from": "a/b/c"}"#, " 400 "),
        ("application/json", r#"{"too": "a"}"#, " 422 "),
    ] {
        let answer = post(&status, "/trace", content_type, body).await;
        assert!(answer.contains(expected), "{content_type} {body}: {answer}");
    }

    let mesh = web(&xds.to_string(), 7);
    for form in ["json", "text"] {
        let status = status.clone();
        let trace = tokio::task::spawn_blocking(move || {
            let wanted = ["--from", "shop/web", "--to", "gone.example.com", "--where", "path /x", "-o", form];
            output(&[&["trace", "--status-addr", &status][..], &wanted].concat())
        });
        while !trace.is_finished() {
            // It fails, as it has to.
            _ = mesh.client().get("http://gone.example.com/x").await;
            tokio::task::yield_now().await;
        }
        let out = trace.await.unwrap();
        let (said, why) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{said} {why}");
        // The first time, the process may not have come yet when it is counted.
        assert!(form == "json" || why.contains("processes that follow: 1;"), "{why}");
        if form == "json" {
            let said: Value = serde_json::from_str(&said).unwrap();
            assert!(said["causes"][0].as_str().unwrap().contains("refused"), "{said}");
            assert_eq!((&said["hops"][0]["workload"], &said["hops"][0]["path"]), (&"shop/web".into(), &"/x".into()));
        } else {
            assert!(said.starts_with("cause: ") && said.contains("client shop/web: GET gone.example.com/x"), "{said}");
        }
    }

    for (wanted, expected) in [
        (&["--where", "colour red"][..], "expected `header NAME=VALUE`"),
        (&["--to", "nobody", "--timeout", "1"], "not as many requests came"),
    ] {
        let out = output(&[&["trace", "--status-addr", &status][..], wanted].concat());
        let why = text(&out.stderr);
        assert!(out.status.code() == Some(1) && why.contains(expected), "{wanted:?}: {why}");
    }
}

/// From the question to the last of them that looks for the request.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a bar of an optimised build: .ci/nightly followed"]
async fn two_hundred_processes_follow_within_two_seconds() {
    const PROCESSES: usize = 200;
    let dir = gone();
    let (_control, xds, status) = Control::listening(dir.path());
    let all: Vec<Mesh> = (0..PROCESSES).map(|number| web(&xds.to_string(), number)).collect();
    for mesh in &all {
        // Who has called nobody has no stream.
        _ = mesh.client().get("http://gone.example.com/").await;
    }
    let body = r#"{"from": "shop/web", "to": "gone.example.com", "where": ["path /nothing"]}"#;
    let mut times = Vec::new();
    while times.len() < 5 {
        let asked = Instant::now();
        let mut stream = tokio::net::TcpStream::connect(&status).await.unwrap();
        let length = body.len();
        let head = "POST /trace HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = tokio::io::BufReader::new(stream).lines();
        let armed = loop {
            let line = lines.next_line().await.unwrap().expect("it says how many there are");
            if line.contains("\"armed\"") {
                break line;
            }
        };
        while all.iter().any(|mesh| !mesh.store().live_traces().is_armed()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = asked.elapsed();
        drop(lines);
        while all.iter().any(|mesh| mesh.store().live_traces().is_armed()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The last stream may have come meanwhile.
        if armed.contains(&format!("\"processes\":{PROCESSES}")) {
            times.push(took);
        }
    }
    times.sort();
    println!("{PROCESSES} processes follow after {times:?}");
    assert!(times.iter().all(|time| *time <= Duration::from_secs(2)), "{times:?}");
}
