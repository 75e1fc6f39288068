//! Copies of requests for other clusters (`request_mirror_policies`): whatever becomes of them, the request itself goes its
//! way.
//!
//! A copy has its own budget: so many are under way at a time, and of so many requests, so much is kept of a body that is
//! still being made; each has so much time for either. One for which there is no room is left out, which is counted, and
//! told once.

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
use tokio::runtime::Handle;

use crate::body::{Body, CopyOf, Growing, NoCopy, Whole};
use crate::transport::{exchange, is_success, outcome_of};

/// How many copies are under way at a time, of all clients of a mesh together.
const MOST: u32 = 256;

/// Of how many requests bodies are kept that are still being made. They come as slowly as those who send them like, so they are
/// not in the way of copies that could go.
const MOST_GROWING: u32 = 1024;

/// How much is kept of a body that is still being made.
const LARGEST: usize = 64 << 10;

/// How long a copy may take, and before that the body of its request, where its route has no limit: Envoy's limit of a
/// route that says nothing.
const LONGEST: Duration = Duration::from_secs(15);

/// What became of copies of requests, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorCounts {
    /// Answered, whatever the answer was.
    pub answered: u64,
    /// Not answered: no endpoint, no connection, too late. Or the body of the request took too long.
    pub failed: u64,
    /// Left out, since 256 were under way, or the bodies of 1024 requests were still being made.
    pub overflowed: u64,
    /// Left out, since the body was made piece by piece, and had more than 64 KiB.
    pub too_large: u64,
}

/// All copies of a mesh.
#[derive(Debug, Default)]
pub(crate) struct Mirrors {
    under_way: Arc<AtomicU32>,
    growing: Arc<AtomicU32>,
    answered: AtomicU64,
    failed: AtomicU64,
    overflowed: AtomicU64,
    too_large: AtomicU64,
    was_told: [AtomicBool; 3],
}

/// One of so many.
struct Permit(Arc<AtomicU32>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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

    fn permit(&self, of: &Arc<AtomicU32>, most: u32, what: &str) -> Option<Permit> {
        let more = |count: u32| (count < most).then_some(count + 1);
        let is_free = of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !is_free {
            self.count(&self.overflowed, 0, || format!("{most} {what}"));
        }
        is_free.then(|| Permit(Arc::clone(of)))
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
    targets: Vec<(Arc<ClusterView>, MirrorHost)>,
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
            Some((Arc::clone(cluster), mirror.host.clone()))
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
            || json!({"to": self.targets.iter().map(|(cluster, _)| cluster.name().as_str()).collect::<Vec<_>>()}),
        );
        let Ok(runtime) = Handle::try_current() else { return };
        match body.copied(LARGEST) {
            CopyOf::Whole(data) => self.send((data, None), &runtime),
            CopyOf::Growing(body) => {
                let growing = self.mirrors.permit(&self.mirrors.growing, MOST_GROWING, "bodies are still being made");
                if let Some(growing) = growing {
                    runtime.spawn(self.grow(body, growing));
                }
            }
        }
    }

    /// Sends them when the body of the request is all there.
    async fn grow(self: Box<Self>, body: Growing, growing: Permit) {
        let whole = tokio::time::timeout(self.limit, body.whole()).await;
        drop(growing);
        let (mirrors, limit) = (Arc::clone(&self.mirrors), self.limit);
        match whole {
            Ok(Ok(body)) => self.send(body, &Handle::current()),
            Ok(Err(NoCopy::TooLarge)) => {
                mirrors.count(&mirrors.too_large, 1, || format!("its body has more than {LARGEST} bytes"));
            }
            Ok(Err(NoCopy::BrokenOff)) => {}
            Err(_) => mirrors.count(&mirrors.failed, 2, || format!("its body took longer than {limit:?}")),
        }
    }

    /// Sends them, each on its own.
    fn send(self: Box<Self>, (data, trailers): Whole, runtime: &Handle) {
        let Copies { mirrors, head, info, limit, targets } = *self;
        for (cluster, host) in targets {
            let Some(permit) = mirrors.permit(&mirrors.under_way, MOST, "copies are under way") else { continue };
            let mirrors = Arc::clone(&mirrors);
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
                let _permit = permit;
                let sent = tokio::time::timeout(limit, deliver(&cluster, head, body, own)).await;
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
async fn deliver(cluster: &ClusterView, head: Parts, body: Body, mut info: RequestInfo) -> Result<(), MeshError> {
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
    let (response, connection) = exchange(cluster, endpoint, &info, true, Request::from_parts(head, body)).await?;
    let (answer, mut body) = response.into_parts();
    let mut outcome = outcome_of(answer.status, &answer.headers, info.is_grpc);
    while let Some(frame) = body.frame().await {
        let lost = |error| MeshError::new(ErrorKind::ConnectionLost, "its answer broke off").caused_by(error);
        let frame = frame.map_err(lost)?;
        let code = frame.trailers_ref().filter(|_| info.is_grpc).and_then(grpc_status);
        outcome = code.map(Outcome::of_grpc).or(outcome);
    }
    note(outcome.is_some_and(|outcome| is_success(outcome, info.is_grpc)));
    connection.give_back(endpoint);
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    /// A body that never comes, of a request that is copied.
    fn endless(mirrors: &Arc<Mirrors>) -> Body {
        let (head, ()) = Request::new(()).into_parts();
        let info = || RequestInfo::new(Instant::now(), fastrand::Rng::new());
        let mirrors = Arc::clone(mirrors);
        let copies = Copies { mirrors, head, info: info(), limit: LONGEST, targets: Vec::new() };
        let mut body = Body::new(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>()));
        Box::new(copies).go_with(&mut body, &mut info());
        body
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_given_up_whose_body_takes_too_long() {
        let mirrors = Arc::<Mirrors>::default();
        let growing = || mirrors.growing.load(Ordering::Relaxed);
        let bodies: Vec<_> = (0..=MOST_GROWING).map(|_| endless(&mirrors)).collect();
        assert_eq!((growing(), mirrors.counts().overflowed), (MOST_GROWING, 1));
        assert_eq!(mirrors.under_way.load(Ordering::Relaxed), 0, "they are in no other copy's way");
        tokio::time::sleep(LONGEST * 2).await;
        assert_eq!((growing(), mirrors.counts().failed), (0, u64::from(MOST_GROWING)));
        drop(bodies);
        // One that breaks off is no copy that failed.
        let body = endless(&mirrors);
        assert_eq!(growing(), 1);
        drop(body);
        tokio::time::sleep(LONGEST / 2).await;
        assert_eq!((growing(), mirrors.counts().failed), (0, u64::from(MOST_GROWING)));
    }
}
