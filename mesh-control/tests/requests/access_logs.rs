//! Access logs that the settings of the mesh ask for (`accessLogFile`, `accessLogFormat`, `accessLogEncoding`): by the lines that
//! clients and servers write.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_control::analysis::validate;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::model::LogFormat;
use mesh_tower::{Mesh, MeshBuilder};
use serde_json::{Value, json};
use tower_layer::Layer;

use crate::support::{introduced, mesh_settings, nobody};

const PATIENCE: Duration = Duration::from_secs(5);

/// A client and a server of the namespace `shop`, whose settings say so.
struct World {
    _control: Embedded,
    client: Mesh,
    _server: Mesh,
}

impl World {
    async fn start(mesh: &str, more: &str, allow: impl Fn(MeshBuilder) -> MeshBuilder) -> World {
        let services = "
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
";
        let yaml = format!("{services}{}{more}", mesh_settings(mesh));
        let control = Embedded::start(Config::yaml(yaml), Options::default().dev()).await.unwrap();
        let start = |app: &str| {
            let bootstrap = introduced(&format!("{app}-1"), json!({"app": app})).metadata("SERVICE_ACCOUNT", app);
            let builder = Mesh::builder().source(control.source(bootstrap)).cold_start_wait(PATIENCE);
            allow(builder).start().unwrap()
        };
        let (client, server) = (start("web"), start("reviews"));
        let listener = server.bind("127.0.0.1:0").await.unwrap();
        let app = server.server_layer().layer(axum::Router::new().fallback(|_read: bytes::Bytes| async { "hello" }));
        tokio::spawn(mesh_tower::server::serve(listener, app).readable_bodies().into_future());
        server.serving().await.unwrap();
        World { _control: control, client, _server: server }
    }

    async fn get(&self, uri: &str, user_agent: &str) {
        let request = http::Request::get(uri).header("user-agent", user_agent);
        let request = request.body(mesh_tower::body::Body::empty()).unwrap();
        if let Ok(response) = self.client.client().request(request).await {
            response.into_body().collect().await.unwrap();
        }
    }
}

/// Waits until a file has so many lines.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    let come = async {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    let shown = || std::fs::read_to_string(path).unwrap_or_default();
    tokio::time::timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("{count} lines: {}", shown()))
}

/// The columns of a line, as parsers of the field split it: at blanks, but for those in quotes and brackets.
pub(crate) fn columns(line: &str) -> Vec<String> {
    let (mut columns, mut chars) = (vec![String::new()], line.chars());
    let mut until = None;
    while let Some(c) = chars.next() {
        let column = columns.last_mut().unwrap();
        match (until, c) {
            (None, ' ') => columns.push(String::new()),
            (None, '[') if column.is_empty() => until = Some(']'),
            (None, '"') if column.is_empty() => until = Some('"'),
            (Some(_), '\\') => column.push(chars.next().unwrap()),
            (Some(end), c) if c == end => until = None,
            (_, c) => column.push(c),
        }
    }
    columns
}

fn file(dir: &tempfile::TempDir) -> (PathBuf, String) {
    let path = dir.path().join("access.log");
    let text = path.display().to_string();
    (path, text)
}

#[tokio::test]
async fn both_sides_write_istios_line_and_a_client_cannot_forge_another() {
    let dir = tempfile::tempdir().unwrap();
    let (path, text) = file(&dir);
    let gone = nobody().await;
    let more = format!(
        "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: gone, namespace: shop}}
spec:
  hosts: [gone.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
",
        gone.ip(),
        gone.port()
    );
    let allow = |builder: MeshBuilder| builder.access_log_files_in(dir.path());
    let world = World::start(&format!("accessLogFile: {text}"), &more, allow).await;
    let forged = "curl\" 200 - via_upstream \\";
    world.get("http://reviews.shop/a?b=1", forged).await;
    let both = lines(&path, 2).await;
    assert_eq!(both.len(), 2);
    for line in &both {
        let columns = columns(line);
        assert_eq!(columns.len(), 22, "{line}");
        assert!(columns[0].ends_with('Z') && columns[0].contains('T'), "{line}");
        let shown: Vec<_> = columns[1..5].iter().map(String::as_str).collect();
        assert_eq!(shown, ["GET /a?b=1 HTTP/1.1", "200", "-", "via_upstream"], "{line}");
        assert_eq!((&*columns[8], &*columns[12], &*columns[14]), ("5", forged, "reviews.shop"), "{line}");
    }
    let of_client = both.iter().map(|line| columns(line)).find(|columns| columns[16].starts_with("outbound|80||"));
    assert!(of_client.unwrap()[15].starts_with("127.0.0.1:"));
    let of_server = both.iter().map(|line| columns(line)).find(|columns| columns[16] == "-").unwrap();
    assert!(of_server[18].starts_with("127.0.0.1:") && of_server[19].starts_with("127.0.0.1:"), "{of_server:?}");
    world.get("http://gone.example.com/", "x").await;
    let all = lines(&path, 3).await;
    let columns = columns(&all[2]);
    let details = "upstream_reset_before_response_started{connection_failure}";
    assert_eq!([&*columns[2], &*columns[3], &*columns[4]], ["503", "URX,UF", details], "{}", all[2]);
}

#[tokio::test]
async fn lines_are_json_or_of_another_format_where_the_settings_say_so() {
    for (more, is_json) in
        [("accessLogEncoding: JSON", true), ("accessLogFormat: 'x %REQ(:PATH):2% %RESPONSE_CODE%'", false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (path, text) = file(&dir);
        let allow = |builder: MeshBuilder| builder.access_log_files_in(dir.path());
        let world = World::start(&format!("accessLogFile: {text}\n{more}"), "", allow).await;
        world.get("http://reviews.shop/abc", "a\"b").await;
        for line in lines(&path, 2).await {
            if is_json {
                let object: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(object.as_object().unwrap().len(), 24);
                assert_eq!((&object["response_code"], &object["user_agent"]), (&200.into(), &"a\"b".into()));
                assert_eq!((&object["path"], &object["bytes_sent"]), (&"/abc".into(), &5.into()));
            } else {
                assert_eq!(line, "x /a 200");
            }
        }
    }
}

#[tokio::test]
async fn the_configuration_names_no_file_that_the_application_has_not_allowed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, text) = file(&dir);
    for escape in [text.clone(), format!("{}/../{}/access.log", other.path().display(), dir.path().display())] {
        let own = Arc::new(Mutex::new(Vec::new()));
        let allow = |builder: MeshBuilder| {
            let own = Arc::clone(&own);
            let note = move |line: &str| own.lock().unwrap().push(line.to_owned());
            builder.access_log_files_in(other.path()).access_log_to(LogFormat::default(), note)
        };
        let world = World::start(&format!("accessLogFile: {escape}"), "", allow).await;
        world.get("http://reviews.shop/", "x").await;
        assert!(world.client.lost_log_lines() >= 1 && !path.exists(), "{escape}");
        assert!(!own.lock().unwrap().is_empty(), "what the application asks for itself is written");
    }
}

#[test]
fn a_format_that_cannot_be_read_is_an_error_where_it_is_written() {
    for (mesh, expected) in [
        ("accessLogFile: /dev/stdout\naccessLogFormat: '%REQ('", "has no end"),
        ("accessLogFile: /dev/stdout\naccessLogEncoding: JSON\naccessLogFormat: 'x'", "not an object of JSON"),
        ("accessLogFile: /dev/stdout\naccessLogEncoding: JSON\naccessLogFormat: '{\"a\": \"%x%\"}'", "not a command"),
    ] {
        let found = validate([("t.yaml", mesh_settings(mesh).as_str())]);
        let found: Vec<_> = found.iter().map(ToString::to_string).filter(|line| line.contains("error[")).collect();
        assert!(found.first().is_some_and(|line| line.contains(expected)), "{mesh}: {found:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_route_has_its_line_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, text) = file(&dir);
    let rule = "
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec: {hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}]}
";
    let allow = |builder: MeshBuilder| builder.access_log_files_in(dir.path());
    let settings = format!("accessLogFile: {text}\naccessLogFormat: '%RESPONSE_CODE% %RESPONSE_FLAGS% %REQ(:PATH)%'");
    let world = World::start(&settings, rule, allow).await;
    world.get("http://reviews.shop/none", "x").await;
    assert_eq!(lines(&path, 1).await, ["404 NR /none"]);
}

#[tokio::test]
async fn a_call_that_is_refused_by_registry_only_has_its_line_its_series_and_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (path, text) = file(&dir);
    let allow = |builder: MeshBuilder| builder.access_log_files_in(dir.path()).metrics();
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %REQ(:AUTHORITY)% %ROUTE_NAME% %UPSTREAM_CLUSTER%";
    let settings =
        format!("accessLogFile: {text}\naccessLogFormat: '{format}'\noutboundTrafficPolicy: {{mode: REGISTRY_ONLY}}");
    let world = World::start(&settings, "", allow).await;
    let error = world.client.client().get("http://nobody.example.com/").await.unwrap_err();
    assert!(format!("{error:#}").contains("no object describes it") && format!("{error:#}").contains("REGISTRY_ONLY"));
    let expected = "502 NR nobody.example.com block_all BlackHoleCluster";
    assert!(lines(&path, 1).await.contains(&expected.to_owned()), "{:?}", lines(&path, 1).await);
    let counted = world.client.prometheus();
    let of_it = |line: &&str| line.starts_with("istio_requests_total{") && line.contains("BlackHoleCluster");
    let line = counted.lines().find(of_it).unwrap_or_else(|| panic!("{counted}"));
    for label in [
        "destination_service_name=\"BlackHoleCluster\"",
        "destination_service=\"unknown\"",
        "response_code=\"502\"",
        "response_flags=\"NR\"",
    ] {
        assert!(line.contains(label), "{label}: {line}");
    }
    assert!(!counted.contains("nobody.example.com"), "nobody makes up a series");
}

#[tokio::test]
async fn a_server_writes_who_called_and_how_much_it_was_sent_also_without_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let (path, text) = file(&dir);
    let allow = |builder: MeshBuilder| builder.access_log_files_in(dir.path());
    let format = "%DOWNSTREAM_PEER_URI_SAN% %BYTES_RECEIVED% %PROTOCOL%";
    let world = World::start(&format!("accessLogFile: {text}\naccessLogFormat: '{format}'"), "", allow).await;
    let pieces = futures_util::stream::iter(["abc", "de"].map(|piece| {
        Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(bytes::Bytes::from_static(piece.as_bytes())))
    }));
    let body = mesh_tower::body::Body::new(http_body_util::StreamBody::new(pieces));
    let request = http::Request::post("http://reviews.shop/").body(body).unwrap();
    world.client.client().request(request).await.unwrap().into_body().collect().await.unwrap();
    let all = lines(&path, 2).await;
    assert!(all.contains(&"spiffe://cluster.local/ns/shop/sa/web 5 HTTP/1.1".to_owned()), "{all:?}");
}

#[test]
fn a_command_that_is_unknown_is_told() {
    let told = |format: &str| {
        let mesh = format!("accessLogFile: /dev/stdout\naccessLogFormat: '{format}'");
        validate([("t.yaml", mesh_settings(&mesh).as_str())])
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(told("%NO_SUCH% %RESPONSE_CODE%").contains("%NO_SUCH%: there is nothing of it here"));
    assert_eq!(told("%RESPONSE_CODE% %CONNECTION_TERMINATION_DETAILS%"), "");
}
