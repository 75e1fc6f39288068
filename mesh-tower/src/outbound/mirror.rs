//! Copies of requests for other clusters (`request_mirror_policies`): whatever becomes of them, the request itself goes its
//! way.
//!
//! A copy has its own budget: so many are under way at a time, each with so much of a body that is still being made and so
//! much time. One for which there is no room is left out, which is counted, and told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt;
use mesh_core::balance::PickArgs;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Forward, Mirror, MirrorHost};
use mesh_core::outlier::Outcome;
use mesh_core::request::split_authority;
use mesh_core::request_info::{RequestInfo, grpc_status};
use mesh_core::rewrite::edit;
use mesh_core::trace::Tables;
use mesh_core::view::{ClusterView, TargetView};
use serde_json::json;

use crate::body::{Body, Whole};
use crate::transport::{Security, Transport, is_success, outcome_of, pooled};

/// How many copies are under way at a time, of all clients of a mesh together.
const MOST: u32 = 256;

/// How much is kept of a body that is still being made.
const LARGEST: usize = 64 << 10;

/// How long a copy may take where its route has no limit: Envoy's limit of a route that says nothing.
const LONGEST: Duration = Duration::from_secs(15);

/// What became of copies of requests, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorCounts {
    /// Answered, whatever the answer was.
    pub answered: u64,
    /// Not answered: no endpoint, no connection, too late.
    pub failed: u64,
    /// Left out, since 256 were under way.
    pub overflowed: u64,
    /// Left out, since the body was made piece by piece, and had more than 64 KiB.
    pub too_large: u64,
}

/// All copies of a mesh.
#[derive(Debug, Default)]
pub(crate) struct Mirrors {
    under_way: AtomicU32,
    answered: AtomicU64,
    failed: AtomicU64,
    overflowed: AtomicU64,
    too_large: AtomicU64,
    was_told: [AtomicBool; 3],
}

/// One that is under way.
struct Permit(Arc<Mirrors>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Mirrors {
    pub(crate) fn counts(&self) -> MirrorCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MirrorCounts {
            answered: count(&self.answered),
            failed: count(&self.failed),
            overflowed: count(&self.overflowed),
            too_large: count(&self.too_large),
        }
    }

    fn permit(self: &Arc<Self>) -> Option<Permit> {
        let more = |count: u32| (count < MOST).then_some(count + 1);
        let is_free = self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !is_free {
            self.count(&self.overflowed, 0, || format!("{MOST} copies are under way"));
        }
        is_free.then(|| Permit(Arc::clone(self)))
    }

    /// Counts one that is left out or failed; the first of each kind is told.
    fn count(&self, counter: &AtomicU64, kind: usize, why: impl FnOnce() -> String) {
        counter.fetch_add(1, Ordering::Relaxed);
        if self.was_told.get(kind).is_some_and(|told| !told.swap(true, Ordering::Relaxed)) {
            let why = why();
            tracing::warn!(%why, "a request was not mirrored; further ones are counted (Mesh::mirror_counts)");
        }
    }
}

/// The copies of one request, until its body is known.
pub(super) struct Copies {
    mirrors: Arc<Mirrors>,
    head: Parts,
    info: RequestInfo,
    limit: Duration,
    targets: Vec<(Arc<ClusterView>, MirrorHost, Permit)>,
}

impl Copies {
    /// The copies that a route wants of a request, as it makes it.
    #[cold]
    pub(super) fn of(
        mirrors: &Arc<Mirrors>,
        forward: &Forward,
        view: &TargetView,
        head: &Parts,
        info: &mut RequestInfo,
    ) -> Option<Box<Copies>> {
        if head.method == Method::CONNECT || head.headers.contains_key(http::header::UPGRADE) {
            return None;
        }
        let mut wanted = |mirror: &&Mirror| mirror.fraction.contains(info.random.u32(0..1_000_000));
        let targets = forward.mirrors.iter().filter(|mirror| wanted(mirror)).filter_map(|mirror| {
            let cluster = view.clusters().iter().find(|cluster| *cluster.name() == mirror.cluster)?;
            Some((Arc::clone(cluster), mirror.host.clone(), mirrors.permit()?))
        });
        let targets: Vec<_> = targets.collect();
        if targets.is_empty() {
            return None;
        }
        let (mut own, ()) = Request::new(()).into_parts();
        (own.method, own.uri, own.version, own.headers) =
            (head.method.clone(), head.uri.clone(), head.version, head.headers.clone());
        info.tell_trace(Tables::Kept, &mut own.headers);
        let mut copied = RequestInfo::new(Instant::now(), fastrand::Rng::new());
        (copied.is_grpc, copied.is_http2, copied.hash) = (info.is_grpc, info.is_http2, info.hash);
        let limit = forward.time_limit(info.is_grpc, None).unwrap_or(LONGEST);
        Some(Box::new(Copies { mirrors: Arc::clone(mirrors), head: own, info: copied, limit, targets }))
    }

    /// Sends them with the body of the request, which is about to be sent itself.
    #[cold]
    pub(super) fn go_with(self: Box<Self>, body: &mut Body, info: &mut RequestInfo) {
        info.note_event(
            "mirrored",
            || json!({"to": self.targets.iter().map(|(cluster, ..)| cluster.name().as_str()).collect::<Vec<_>>()}),
        );
        body.copied(LARGEST, move |body| self.send(body));
    }

    /// Sends them, each on its own. `None`: the body is too large to be kept.
    fn send(self: Box<Self>, body: Option<Whole>) {
        let Copies { mirrors, head, info, limit, targets } = *self;
        let Some((data, trailers)) = body else {
            mirrors.count(&mirrors.too_large, 1, || format!("its body has more than {LARGEST} bytes"));
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        for (cluster, host, permit) in targets {
            let mut head = head.clone();
            rename(&mut head, &host);
            let mut own = RequestInfo::new(info.started, fastrand::Rng::new());
            (own.is_grpc, own.is_http2, own.hash) = (info.is_grpc, info.is_http2, info.hash);
            let body = match &trailers {
                None => Body::from(data.clone()),
                Some(trailers) => Body::of_frames([data.clone()], Some(trailers.clone())),
            };
            // It ends with its time at the latest, and gives its place back.
            runtime.spawn(async move {
                let sent = tokio::time::timeout(limit, deliver(&cluster, head, body, own)).await;
                let Permit(mirrors) = &permit;
                match sent {
                    Ok(Ok(())) => _ = mirrors.answered.fetch_add(1, Ordering::Relaxed),
                    Ok(Err(error)) => mirrors.count(&mirrors.failed, 2, || error.to_string()),
                    Err(_) => {
                        let why = || format!("cluster {}: no answer within {limit:?}", cluster.name());
                        mirrors.count(&mirrors.failed, 2, why);
                    }
                }
            });
        }
    }
}

/// One try, and its answer to the end. Reports of load have it as they have any other.
async fn deliver(cluster: &ClusterView, mut head: Parts, body: Body, mut info: RequestInfo) -> Result<(), MeshError> {
    let mut transport = pooled();
    let pick = cluster.pick(&mut PickArgs::of(&mut info), || "").inspect_err(|error| {
        if let Some(leaf) = cluster.leaves().first().filter(|_| error.kind() != ErrorKind::Overflow) {
            leaf.state.note_unsent(&leaf.cluster);
        }
    })?;
    let (cluster, endpoint) = (pick.cluster, pick.in_flight.endpoint());
    let reported = endpoint.begin_reported(Instant::now);
    let note = |is_success| reported.iter().for_each(|reported| reported.note(is_success));
    // Until it is answered: its time may be over before.
    note(false);
    let security = Security::of(cluster, endpoint.is_mutual_tls())?;
    let version = transport.form(&mut head, cluster, &info, None)?;
    let mut connection = match transport.ready(cluster, endpoint, version, security) {
        Some(connection) => connection,
        None => transport.connect(cluster, endpoint, version, security, true).await?,
    };
    let may_go_on = transport.may_go_on(&connection, cluster);
    let response = match transport.send(&mut connection, Request::from_parts(head, body), endpoint).await {
        Ok(response) => response,
        Err(error) => return Err(transport.failure(error, Some(connection), false).error),
    };
    transport.answered(&connection);
    let (answer, mut body) = response.into_parts();
    let mut outcome = outcome_of(answer.status, &answer.headers, info.is_grpc);
    while let Some(frame) = body.frame().await {
        let lost = |error| MeshError::new(ErrorKind::ConnectionLost, "its answer broke off").caused_by(error);
        let frame = frame.map_err(lost)?;
        let code = frame.trailers_ref().filter(|_| info.is_grpc).and_then(grpc_status);
        outcome = code.map(Outcome::of_grpc).or(outcome);
    }
    note(outcome.is_some_and(|outcome| is_success(outcome, info.is_grpc)));
    if may_go_on {
        transport.release(connection, endpoint);
    }
    Ok(())
}

/// Gives a copy the host that its policy wants.
fn rename(head: &mut Parts, host: &MirrorHost) {
    let new = match host {
        MirrorHost::Same => return,
        MirrorHost::Literal(host) => host.clone(),
        MirrorHost::Suffixed => {
            let sent = head.headers.get(HOST).and_then(|host| host.to_str().ok());
            let sent = sent.or_else(|| head.uri.authority().map(|authority| authority.as_str()));
            let Some((name, port)) = sent.and_then(split_authority) else { return };
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            match HeaderValue::try_from(format!("{name}-shadow{port}")) {
                Ok(new) => new,
                Err(_) => return,
            }
        }
    };
    head.headers.insert(HOST, new);
    edit(&mut head.uri, |uri| uri.authority = None);
}
