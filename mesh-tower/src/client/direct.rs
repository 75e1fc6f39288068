//! The short way: a request that nothing has to wait for goes to its connection before the call returns, and the
//! future holds no more than the exchange. It passes the same stations as on the long way, as far as they are
//! open. At one that is not, it takes the long way: untouched, if that is before an endpoint was picked, else to
//! that very endpoint.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Cluster, ClusterTls, Forward, RouteAction};
use mesh_core::request::{RequestHead, has_port, host_and_port};
use mesh_core::state::InFlight;
use mesh_core::view::{Pick, Place, Routed, TargetView};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::attempt::Tries;
use super::connect::{self, Blame, Exchange, Failure, Guard, Lease, Protocol};
use super::route::{self, Journey};
use super::{FixedTarget, ResponseFuture, change};
use crate::body::{Body, ResponseBody};
use crate::mesh::Mesh;

/// Sends a request, or gives it back as it was.
#[allow(clippy::result_large_err, reason = "the request itself")]
pub(super) fn send(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    mut journey: Journey,
    mut request: Request<Body>,
) -> Result<ResponseFuture, (Journey, Request<Body>)> {
    let Some(view) = view(mesh, target, &request) else { return Err((journey, request)) };
    let random = journey.call.random.clone();
    let Some((routed, forward, pick)) = stations(&view, target, &mut journey.call, &request) else {
        // The long way is to decide the same.
        journey.call.random = random;
        return Err((journey, request));
    };
    // There is an endpoint. From here on the request is changed and does not come back.
    journey.note(&routed);
    if journey.call.is_observed {
        journey.call.endpoint = Some(Arc::clone(pick.in_flight.endpoint()));
    }
    route::limit(&mut journey.call, forward, &routed);
    let lease = match prepare(&routed, forward, target, &pick, &mut journey.call, &mut request, view.host()) {
        Ok(lease) => lease,
        Err(error) => {
            let error = journey.failed(route::within(&routed, error));
            return Ok(ResponseFuture(Box::pin(std::future::ready(Err(error)))));
        }
    };
    let (place, leaf, changes) = (routed.place, pick.leaf, !routed.response_changes.is_empty());
    let goes_on = lease.as_ref().is_some_and(|lease| lease.may_go_on(pick.cluster));
    let in_flight = pick.in_flight;
    let trip = Trip { view, place, leaf, changes, journey };
    let Some(lease) = lease else { return Ok(ResponseFuture(Box::pin(trip.connect(in_flight, request)))) };
    let mut direct = Box::new(Direct {
        exchange: Exchange::new(lease, goes_on),
        trip: Some((trip, in_flight)),
        deadline: None,
        again: None,
    });
    direct.exchange.begin(request, Lease::send);
    Ok(ResponseFuture(Box::into_pin(direct)))
}

/// The view of the request's target, if it is known and may be asked for.
fn view(mesh: &Mesh, target: Option<&FixedTarget>, request: &Request<Body>) -> Option<Arc<TargetView>> {
    if route::asks_for_tls(request.uri()) {
        return None;
    }
    if let Some(target) = target {
        return target.entry.view();
    }
    let head;
    let authority = match request.uri().authority() {
        // A name that the store knows has no user in it, nor anything else that would have to be taken out.
        Some(authority) => authority.as_str(),
        None => {
            head = RequestHead::of_request(request).ok()?;
            head.authority
        }
    };
    match has_port(authority) {
        true => mesh.store().view(authority),
        false => mesh.store().view(&host_and_port(authority, "http").ok()?),
    }
}

/// What the stations of a view have for a request: a route that forwards it and an endpoint.
#[inline]
fn stations<'v>(
    view: &'v TargetView,
    target: Option<&FixedTarget>,
    call: &mut Call,
    request: &Request<Body>,
) -> Option<(Routed<'v>, &'v Forward, Pick<'v>)> {
    let authority = match (target, request.uri().authority()) {
        (Some(target), _) => target.authority.as_str(),
        (None, Some(authority)) => authority.as_str(),
        (None, None) => RequestHead::of_request(request).ok()?.authority,
    };
    let routed = view.find(&RequestHead::of_request_to(request, authority), call).ok()?;
    let RouteAction::Forward(forward) = &routed.route.action else { return None };
    let cluster = routed.cluster?;
    if !routed.filters.is_empty() || cluster.passes_through() {
        return None;
    }
    let pick = cluster.pick(call, || authority).ok()?;
    Some((routed, forward, pick))
}

/// Makes the request what its endpoint is to see, and takes a connection to it, if one is ready.
#[inline]
fn prepare(
    routed: &Routed<'_>,
    forward: &Forward,
    target: Option<&FixedTarget>,
    pick: &Pick<'_>,
    call: &mut Call,
    request: &mut Request<Body>,
    host: Option<&http::HeaderValue>,
) -> Result<Option<Lease>, MeshError> {
    if let (Some(deadline), Some(cluster)) = (call.deadline, routed.cluster)
        && deadline <= call.started
    {
        return Err(route::too_late(cluster));
    }
    change::prepare(request, forward, routed, target.map(|target| &target.authority))?;
    route::tell_deadline(call, request.headers_mut());
    let protocol = Protocol::of(request, pick.cluster, call);
    protocol.form(request, host)?;
    Ok(match pick.cluster.tls {
        ClusterTls::Unusable(_) => None,
        _ => connect::ready(pick.cluster, pick.in_flight.endpoint(), protocol),
    })
}

/// What a request keeps until its answer is there.
struct Trip {
    view: Arc<TargetView>,
    place: Place,
    leaf: usize,
    /// Whether the route changes the response.
    changes: bool,
    journey: Journey,
}

impl Trip {
    /// The last station.
    #[inline]
    fn arrive(&mut self, response: &mut Response<Incoming>) {
        if self.changes
            && let Some(routed) = self.view.at(self.place)
        {
            change::apply(routed.response_changes, response.headers_mut());
        }
        self.journey.answered(response.status());
    }

    /// The last station of a request that was too late.
    #[cold]
    fn too_late(&mut self) -> MeshError {
        let error = Course::of(&self.view, self.place, self.leaf)
            .map_or_else(|error| error, |course| route::within(&course.routed, route::too_late(course.tries.cluster)));
        self.journey.failed(error)
    }

    /// The long way from here: a connection to the endpoint has to be waited for.
    async fn connect(self, in_flight: InFlight, request: Request<Body>) -> Result<Response<ResponseBody>, MeshError> {
        let (view, place, leaf) = (Arc::clone(&self.view), self.place, self.leaf);
        let course = Course::of(&view, place, leaf)?;
        let first = Pick { cluster: course.cluster, leaf, in_flight };
        self.finish(&course, async |call| course.tries.from(first, call, request).await).await
    }

    /// The long way, from a try that failed.
    async fn go_on(self, in_flight: InFlight, failure: Failure) -> Result<Response<ResponseBody>, MeshError> {
        let (view, place, leaf) = (Arc::clone(&self.view), self.place, self.leaf);
        let course = Course::of(&view, place, leaf)?;
        let Course { tries, cluster, .. } = &course;
        self.finish(&course, async |call| match (failure.blame, failure.request) {
            (Blame::Stale | Blame::Cut, Some(request)) => {
                call.was_cut = failure.blame == Blame::Cut;
                tries.from(Pick { cluster, leaf, in_flight }, call, *request).await
            }
            (_, request) => {
                let failure = Failure { request, ..failure }.within(cluster, in_flight.endpoint());
                call.tried.push(Arc::clone(in_flight.endpoint()));
                drop(in_flight);
                let request = tries.next(call, failure).await?;
                tries.run(call, request).await
            }
        })
        .await
    }

    /// Tries up to the deadline, and the last station.
    async fn finish(
        mut self,
        course: &Course<'_>,
        tries: impl AsyncFnOnce(&mut Call) -> Result<(Response<Incoming>, Guard), MeshError>,
    ) -> Result<Response<ResponseBody>, MeshError> {
        let deadline = self.journey.call.deadline;
        match route::in_time(deadline, course.tries.cluster, tries(&mut self.journey.call)).await {
            Ok((mut response, guard)) => {
                self.arrive(&mut response);
                let deadline = deadline.map(ResponseBody::until);
                Ok(response.map(|body| ResponseBody::incoming(body, guard, deadline)))
            }
            Err(error) => Err(self.journey.failed(route::within(&course.routed, error))),
        }
    }
}

/// Where a request went, looked up again in its view.
struct Course<'v> {
    routed: Routed<'v>,
    tries: Tries<'v>,
    cluster: &'v Arc<Cluster>,
}

impl<'v> Course<'v> {
    fn of(view: &'v TargetView, place: Place, leaf: usize) -> Result<Self, MeshError> {
        let find = || {
            let routed = view.at(place)?;
            let RouteAction::Forward(forward) = &routed.route.action else { return None };
            let destination = routed.cluster?;
            let tries = Tries { view, cluster: destination, policy: forward.retry.as_ref(), authority: None };
            Some(Course { routed, tries, cluster: &destination.leaves().get(leaf)?.cluster })
        };
        find().ok_or_else(|| MeshError::new(ErrorKind::NoRoute, "the place is another view's"))
    }
}

pin_project! {
    /// A request on the short way.
    struct Direct<F> {
        #[pin]
        exchange: Exchange<F>,
        // Taken when the exchange ends.
        trip: Option<(Trip, InFlight)>,
        // Runs from when the exchange has to be waited for.
        deadline: Option<Pin<Box<Sleep>>>,
        // The long way, where the exchange failed.
        again: Option<ResponseFuture>,
    }
}

impl<F: Future<Output = hyper::Result<Response<Incoming>>>> Future for Direct<F> {
    type Output = Result<Response<ResponseBody>, MeshError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(again) = this.again {
            return Pin::new(again).poll(cx);
        }
        let Poll::Ready(answer) = this.exchange.as_mut().poll(cx) else {
            let Some((trip, _)) = this.trip else { return Poll::Pending };
            let Some(until) = trip.journey.call.deadline else { return Poll::Pending };
            ready!(this.deadline.get_or_insert_with(|| ResponseBody::until(until)).as_mut().poll(cx));
            let error = trip.too_late();
            *this.trip = None;
            this.exchange.abandon();
            return Poll::Ready(Err(error));
        };
        let (mut trip, in_flight) = this.trip.take().expect("a future is not polled after it returned");
        match answer {
            Ok((mut response, lease)) => {
                trip.arrive(&mut response);
                let deadline = this.deadline.take().or_else(|| trip.journey.call.deadline.map(ResponseBody::until));
                let guard = Guard::new(in_flight, lease);
                Poll::Ready(Ok(response.map(|body| ResponseBody::incoming(body, guard, deadline))))
            }
            Err(failure) => {
                let again = this.again.insert(ResponseFuture(Box::pin(trip.go_on(in_flight, failure))));
                Pin::new(again).poll(cx)
            }
        }
    }
}
