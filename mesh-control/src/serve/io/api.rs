//! The API by which objects in etcd are read and changed: over TLS, by who is on a list. Nobody is unless the operator says so.
//!
//! Who asks is known by a certificate of the mesh, or by a token; what somebody says of themselves counts for nothing, also in the
//! history. What may be read is everything: whoever may see one object sees what others refer to.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::body::to_bytes;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use zeroize::Zeroizing;

use crate::ca::files;
use crate::changes::{Entry, Kept, Listed, Refusal, VersionedStore, Wanted, carry_out, resource_named};
use crate::etcd::Objects;
use crate::serve::clients::refusals::Port;
use crate::serve::io::https;
use crate::serve::io::openapi;
use crate::serve::io::server::{Peer, Server};
use crate::serve::io::tls::TlsFiles;

/// A set of objects, as text; etcd takes 1.5 MiB of them in a transaction.
const MOST_BYTES: usize = 4 << 20;
/// Changes that are looked at at a time, each beside the whole configuration; who comes then waits.
const CHANGES: usize = 2;
/// Answers with all objects, or with the history, that are made at a time.
const READS: usize = 2;
/// How long a request may take: etcd may be without a leader for a while, and others may be faster. Our own commands wait longer.
const REQUEST: Duration = Duration::from_secs(50);

/// Who may ask for what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    /// Identities (`spiffe://…`), or names of tokens.
    pub(crate) readers: BTreeSet<String>,
    /// They may read, too.
    pub(crate) writers: BTreeSet<String>,
    /// A file with tokens, a line each: the name and the token.
    pub(crate) tokens: Option<PathBuf>,
}

#[derive(Clone)]
struct Desk {
    objects: Objects,
    allowed: Arc<Allowed>,
    turns: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// Serves the API of these objects over TLS, until it is told to stop. Returns the address bound.
///
/// # Errors
/// The files cannot be used, or the address is taken.
pub(crate) async fn listen(
    address: SocketAddr,
    files: TlsFiles,
    objects: Objects,
    allowed: Allowed,
    server: &Server,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    if let Some(file) = &allowed.tokens {
        tokens(file)?;
    }
    let desk = Desk {
        objects,
        allowed: Arc::new(allowed),
        turns: Arc::new(Semaphore::new(CHANGES)),
        reads: Arc::new(Semaphore::new(READS)),
    };
    let acceptor = server.reloading(files)?;
    https::listen((Port::Api, address), acceptor.following(), router(desk), server, stop).await
}

fn router(desk: Desk) -> Router {
    let router = Router::new()
        .route("/v1/objects", get(objects))
        .route("/v1/history", get(history))
        .route("/v1/changes", post(change))
        .route("/v1/openapi.json", get(|| async { Json(openapi::document()) }))
        .fallback(|| async {
            refuse(StatusCode::NOT_FOUND, "there are /v1/objects, /v1/history, /v1/changes, /v1/openapi.json")
        });
    let late = || refuse(StatusCode::GATEWAY_TIMEOUT, "it took too long, and nobody knows whether it was done");
    https::in_time(router, REQUEST, late).with_state(desk)
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}

impl Desk {
    /// Who asks, if they may.
    async fn admit(&self, peer: &Peer, headers: &HeaderMap, writes: bool) -> Result<String, Response> {
        let asks = match &peer.identity {
            Some(Ok(id)) => Some(id.to_string()),
            _ => self.bearer(headers).await,
        };
        let Some(name) = asks else {
            let why = "a certificate of the mesh is needed, or a token that is known here";
            return Err(refuse(StatusCode::UNAUTHORIZED, why));
        };
        let may_write = self.allowed.writers.contains(&name);
        if may_write || (!writes && self.allowed.readers.contains(&name)) {
            return Ok(name);
        }
        let what = if writes { "write (--api-writer)" } else { "read (--api-reader)" };
        Err(refuse(StatusCode::FORBIDDEN, &format!("{name} is not among those who may {what}")))
    }

    /// Whose token was sent. The file is read each time: who is taken out of it is out.
    async fn bearer(&self, headers: &HeaderMap) -> Option<String> {
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(sent), None) = (sent.next(), sent.next()) else { return None };
        let sent = sent.as_bytes().strip_prefix(b"Bearer ")?.trim_ascii().to_vec();
        let sent = Zeroizing::new(sent);
        let file = self.allowed.tokens.clone()?;
        let read = spawn_blocking(move || tokens(&file)).await.ok()?;
        let known = match read {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!("nobody is known by a token: {error:#}");
                return None;
            }
        };
        let sent = digest(&SHA256, &sent);
        // All of them are looked at, so that the time says nothing.
        let mut found = None;
        for (name, token) in known {
            if verify_slices_are_equal(digest(&SHA256, token.as_bytes()).as_ref(), sent.as_ref()).is_ok() {
                found = Some(name);
            }
        }
        found
    }
}

/// The tokens of a file that nobody else can read.
fn tokens(file: &Path) -> anyhow::Result<Vec<(String, Zeroizing<String>)>> {
    let bytes = files::read(file)?.with_context(|| format!("there is no {}", file.display()))?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is no text", file.display()))?;
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, token) = line
            .split_once(char::is_whitespace)
            .with_context(|| format!("{}:{}: expected NAME TOKEN", file.display(), number + 1))?;
        let token = token.trim();
        ensure!(
            token.len() >= 16,
            "{}:{}: the token of {name} is shorter than 16 characters",
            file.display(),
            number + 1
        );
        ensure!(!name.contains("://"), "{}:{}: {name} would be taken for an identity", file.display(), number + 1);
        all.push((name.to_owned(), Zeroizing::new(token.to_owned())));
    }
    Ok(all)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

async fn objects(
    State(desk): State<Desk>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Response {
    if let Err(response) = desk.admit(&peer, &headers, false).await {
        return response;
    }
    let resource = match which.kind.as_deref().map(resource_named).transpose() {
        Ok(resource) => resource,
        Err(why) => return refuse(StatusCode::NOT_FOUND, &why),
    };
    let Ok(_read) = desk.reads.acquire().await else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let held = match desk.objects.read().await {
        Ok(held) => held,
        Err(refusal) => return refused(&refusal),
    };
    let (namespace, name) = (which.namespace.as_deref(), which.name.as_deref());
    let found = held.objects.into_iter().filter(|(id, _)| id.matches(resource, namespace, name));
    let objects = found.map(|(id, stored)| Kept::new(&id, &stored)).collect();
    Json(Listed { objects, strange: held.strange }).into_response()
}

#[derive(Serialize)]
struct Told {
    changes: Vec<Entry>,
}

async fn history(State(desk): State<Desk>, Extension(peer): Extension<Peer>, headers: HeaderMap) -> Response {
    if let Err(response) = desk.admit(&peer, &headers, false).await {
        return response;
    }
    let Ok(_read) = desk.reads.acquire().await else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    match desk.objects.history().await {
        Ok(pasts) => Json(Told { changes: pasts.into_iter().map(|past| past.entry).collect() }).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

async fn change(State(desk): State<Desk>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    // Nothing of a body is read before it is known who sends it, and no more of them at a time than are looked at.
    let author = match desk.admit(&peer, request.headers(), true).await {
        Ok(author) => author,
        Err(response) => return response,
    };
    let Ok(_turn) = desk.turns.acquire().await else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let body = match to_bytes(request.into_body(), MOST_BYTES).await {
        Ok(body) => body,
        Err(error) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, &format!("{MOST_BYTES} bytes at most: {error}")),
    };
    let wanted: Wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("no change: {error}")),
    };
    match carry_out(&desk.objects, &wanted, &author, SystemTime::now()).await {
        Ok(done) => {
            if let Some(number) = done.number {
                tracing::info!(%author, change = number, objects = done.objects.len(), "objects were changed");
            }
            Json(done).into_response()
        }
        Err(refusal) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::Unknown(_) => StatusCode::NOT_FOUND,
        Refusal::Conflict(_) => StatusCode::CONFLICT,
        Refusal::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    refuse(status, &refusal.reason())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use mesh_core::error::Invalid;
    use mesh_core::identity::SpiffeId;
    use serde_json::Value;
    use tower_service::Service;

    use super::*;
    use crate::changes::{Id, Stored, What};
    use crate::config::extensions::json_schema::Schema;
    use crate::config::{Source, node};
    use crate::etcd::tests::one_member;
    use crate::kubernetes::tests::WEB;

    const TOKEN: &str = "0123456789abcdef";
    const ANN: &str = "spiffe://cluster.local/ns/ops/sa/ann";

    fn peer(identity: Option<&str>) -> Peer {
        let mut peer = Peer::nameless([127, 0, 0, 1].into());
        peer.identity = identity.map(|id| match id {
            "" => Err(Invalid::new("no name")),
            id => Ok(id.parse::<SpiffeId>().expect("an id")),
        });
        peer
    }

    /// The answer to a request, as JSON.
    async fn ask(router: &Router, peer: &Peer, token: Option<&str>, path: &str, body: Option<&Value>) -> (u16, Value) {
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut request = http::Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = request.body(axum::body::Body::from(body)).expect("a request");
        let mut router = router.clone().layer(Extension(peer.clone()));
        let answer = router.call(request).await.expect("an answer");
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    /// An API of an empty etcd, of which the first list may write, and the second one read.
    async fn api(writers: &[&str], readers: &[&str]) -> (Router, impl Sized) {
        let files = tempfile::tempdir().expect("a directory");
        let tokens = files.path().join("tokens");
        std::fs::write(&tokens, format!("# whose\nrobot {TOKEN}\nother  fedcba9876543210\n")).expect("written");
        std::fs::set_permissions(&tokens, Permissions::from_mode(0o600)).expect("set");
        let (objects, fake) = one_member().await;
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let allowed = Allowed { readers: set(readers), writers: set(writers), tokens: Some(tokens) };
        let desk = Desk {
            objects,
            allowed: Arc::new(allowed),
            turns: Arc::new(Semaphore::new(CHANGES)),
            reads: Arc::new(Semaphore::new(READS)),
        };
        (router(desk), (files, fake))
    }

    fn wanted(text: &str) -> Value {
        let what = What::Apply(BTreeMap::from([("a.yaml".to_owned(), text.to_owned())]));
        serde_json::to_value(Wanted { what, message: "why not".to_owned(), dry_run: false }).expect("JSON")
    }

    #[tokio::test]
    async fn nothing_is_read_of_a_body_before_it_is_known_who_sends_it() {
        let (router, _kept) = api(&[ANN], &[]).await;
        for (identity, expected) in [(None, 401), (Some("spiffe://cluster.local/ns/ops/sa/bob"), 403)] {
            // It never ends.
            let (_sender, body) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
            let body = axum::body::Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
            let request = http::Request::post("/v1/changes").body(body).expect("a request");
            let mut router = router.clone().layer(Extension(peer(identity)));
            let answer = tokio::time::timeout(Duration::from_secs(20), router.call(request)).await;
            assert_eq!(answer.expect("at once").expect("an answer").status().as_u16(), expected, "{identity:?}");
        }
    }

    #[tokio::test]
    async fn nobody_may_do_anything_who_is_not_on_the_list() {
        let (nobody, _kept) = api(&[], &[]).await;
        let (some, _kept) = api(&[ANN], &["robot"]).await;
        let change = wanted(WEB);
        for (who, identity, token, of_nobody, reads, writes) in [
            ("nobody", None, None, 401, 401, 401),
            ("a certificate that names nobody", Some(""), None, 401, 401, 401),
            ("a wrong token", None, Some("0123456789abcdee"), 401, 401, 401),
            ("no token", None, Some(""), 401, 401, 401),
            ("a token that is known, and not on the list", None, Some("fedcba9876543210"), 403, 403, 403),
            ("a reader", None, Some(TOKEN), 403, 200, 403),
            ("somebody else", Some("spiffe://cluster.local/ns/ops/sa/bob"), None, 403, 403, 403),
            // Who has shown a certificate is who it says, whatever else is sent.
            ("somebody else with a token", Some("spiffe://cluster.local/ns/ops/sa/bob"), Some(TOKEN), 403, 403, 403),
            ("a writer", Some(ANN), None, 403, 200, 200),
        ] {
            let peer = peer(identity);
            for path in ["/v1/objects", "/v1/history"] {
                assert_eq!(ask(&nobody, &peer, token, path, None).await.0, of_nobody, "{who}: {path}");
                assert_eq!(ask(&some, &peer, token, path, None).await.0, reads, "{who}: {path}");
            }
            assert_eq!(ask(&nobody, &peer, token, "/v1/changes", Some(&change)).await.0, of_nobody, "{who}");
            assert_eq!(ask(&some, &peer, token, "/v1/changes", Some(&change)).await.0, writes, "{who}");
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_is_done_in_the_name_of_who_asks_and_is_as_the_document_says() {
        let (api, _kept) = api(&["robot"], &[]).await;
        let peer = peer(None);
        let change = wanted(WEB);
        fits("Wanted", &change);
        let (status, done) = ask(&api, &peer, Some(TOKEN), "/v1/changes", Some(&change)).await;
        assert_eq!((status, &done["number"]), (200, &json!(1)), "{done}");
        fits("Done", &done);
        let (_, listed) = ask(&api, &peer, Some(TOKEN), "/v1/objects?kind=services&namespace=shop", None).await;
        assert_eq!(listed["objects"][0]["object"], "services/shop/web");
        assert_eq!(listed["objects"][0]["value"]["metadata"]["name"], "web");
        fits("Objects", &listed);
        let id = Id::named("Service", "shop", "web").expect("a name");
        let broken = Kept::new(&id, &Stored { text: "{".into(), version: 1 });
        fits("Objects", &json!(Listed { objects: vec![broken], strange: vec!["/mesh/objects/a".to_owned()] }));
        let (_, told) = ask(&api, &peer, Some(TOKEN), "/v1/history", None).await;
        assert_eq!(
            (&told["changes"][0]["author"], &told["changes"][0]["message"]),
            (&json!("robot"), &json!("why not"))
        );
        fits("History", &told);
        let delete = |object: &str| json!({"what": {"delete": [object]}, "dryRun": false});
        fits("Wanted", &delete("services/shop/web"));
        fits("Wanted", &json!({"what": {"rollback": null}}));
        let stale = WEB.replace("namespace: shop", "namespace: shop, resourceVersion: '1'");
        for (wrong, expected) in [
            (json!({"what": {"apply": {}}, "author": "somebody else"}), 400),
            (delete("services/shop/none"), 404),
            (wanted(&stale), 409),
            (wanted(&WEB.replace("ports:", "prots:")), 422),
        ] {
            let (status, said) = ask(&api, &peer, Some(TOKEN), "/v1/changes", Some(&wrong)).await;
            assert_eq!(status, expected, "{wrong}: {said}");
            fits("Refusal", &said);
        }
    }

    #[test]
    fn a_file_of_tokens_that_others_can_read_or_that_is_none_is_refused() {
        let files = tempfile::tempdir().expect("a directory");
        let file = files.path().join("tokens");
        let read = |text: &str, mode: u32| {
            std::fs::write(&file, text).expect("written");
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("set");
            tokens(&file).map_err(|error| error.to_string())
        };
        let good = format!("robot {TOKEN}\n");
        assert_eq!(read(&good, 0o600).map(|all| all.len()), Ok(1));
        assert!(read(&good, 0o640).is_err_and(|why| why.contains("mode")));
        for wrong in ["robot\n", "robot short\n", &format!("{ANN} {TOKEN}\n")] {
            assert!(read(wrong, 0o600).is_err(), "{wrong}");
        }
    }

    /// Whether a value is as the document says.
    fn fits(schema: &str, value: &Value) {
        let document = openapi::document();
        let text = document["components"]["schemas"].to_string();
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let read = |value: &Value| {
            let source = Source { name: "etcd://a".into(), text: value.to_string().into() };
            node::parse(&source).expect("JSON").pop().expect("a document")
        };
        let of_it = Schema::read(&read(&all[schema])).expect("a schema");
        let faults = of_it.faults(&read(value));
        assert!(faults.is_empty(), "{schema}: {faults:?} of {value}");
    }

    /// `UPDATE_DOCS=1 cargo test -p mesh-control --lib serve::io::api` writes it.
    #[test]
    fn the_document_is_checked_in_and_has_every_path() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let text = serde_json::to_string_pretty(&openapi::document()).expect("JSON") + "\n";
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let is_update = std::env::var_os("UPDATE_DOCS").is_some();
        if is_update {
            std::fs::write(&path, &text).expect("written");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("checked in"), text, "UPDATE_DOCS=1 writes it anew");
        let own = include_str!("api.rs");
        for path in openapi::document()["paths"].as_object().expect("paths").keys() {
            assert!(own.contains(&format!(".route(\"{path}\"")), "{path} is not served");
        }
        let routes = own.split("#[cfg(test)]").next().expect("code").matches(".route(").count();
        assert_eq!(routes, openapi::document()["paths"].as_object().expect("paths").len());
    }
}
