//! The short way: a request that nothing has to wait for goes to its connection before the call returns, and the
//! future holds no more than the exchange. It passes the same stations as on the long way, as far as they are
//! open. At one that is not, it takes the long way: untouched, if that is before an endpoint was picked, else to
//! that very endpoint.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Cluster, ClusterTls, Forward, RetryPolicy, RouteAction};
use mesh_core::request::RequestHead;
use mesh_core::state::InFlight;
use mesh_core::view::{ClusterView, Pick, Place, Routed, TargetView};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::connect::{self, Exchange, Failure, Guard, Lease, Protocol};
use super::route::{self, Observed};
use super::{FixedTarget, ResponseFuture, attempt, change};
use crate::body::{Body, ResponseBody};
use crate::mesh::Mesh;

/// Sends a request, or gives it back as it was.
#[allow(clippy::result_large_err, reason = "the request itself")]
pub(super) fn send(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    mut call: Call,
    mut request: Request<Body>,
) -> Result<ResponseFuture, (Call, Request<Body>)> {
    let Some((view, authority)) = view(mesh, target, &request) else { return Err((call, request)) };
    let head = RequestHead::of_request_to(&request, authority);
    let Some(open) = stations(&view, &head, &mut call, request.version()) else { return Err((call, request)) };
    // There is an endpoint. From here on the request is changed and does not come back.
    let Open { routed, forward, pick, protocol, lease } = open;
    let observed = Observed::of(mesh, target, &call, &request);
    if call.is_observed {
        call.endpoint = Some(Arc::clone(pick.in_flight.endpoint()));
    }
    route::limit(&mut call, forward, &routed);
    route::tell_deadline(&call, request.headers_mut());
    let formed = change::prepare(&mut request, forward, &routed, target.map(|target| &target.authority))
        .and_then(|()| protocol.form(&mut request, view.host()));
    if let Err(error) = formed {
        lease.into_iter().for_each(|lease| connect::give_back(pick.in_flight.endpoint(), lease));
        let error = route::within(&routed, error);
        if let Some(observed) = observed {
            observed.tell(&call, None, Some(&error));
        }
        return Ok(ResponseFuture(Box::pin(std::future::ready(Err(error)))));
    }
    let (place, leaf, changes) = (routed.place, pick.leaf, !routed.response_changes.is_empty());
    let goes_on = lease.as_ref().is_some_and(|lease| lease.may_go_on(pick.cluster));
    let in_flight = pick.in_flight;
    let trip = Trip { view, place, leaf, changes, call, observed };
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

/// The view of the request's target, and its authority.
fn view<'r>(
    mesh: &Mesh,
    target: Option<&'r FixedTarget>,
    request: &'r Request<Body>,
) -> Option<(Arc<TargetView>, &'r str)> {
    if let Some(target) = target {
        return Some((target.entry.view()?, target.authority.as_str()));
    }
    let authority = match request.uri().authority() {
        // A name that the store knows is a valid one.
        Some(authority) => authority.as_str(),
        None => RequestHead::of_request(request).ok()?.authority,
    };
    Some((mesh.store().view(authority)?, authority))
}

/// What the stations of a view have for a request.
struct Open<'v> {
    routed: Routed<'v>,
    forward: &'v Forward,
    pick: Pick<'v>,
    protocol: Protocol,
    /// A connection to the endpoint, if one is ready.
    lease: Option<Lease>,
}

#[inline]
fn stations<'v>(view: &'v TargetView, head: &RequestHead<'_>, call: &mut Call, version: Version) -> Option<Open<'v>> {
    let routed = view.find(head, call).ok()?;
    let RouteAction::Forward(forward) = &routed.route.action else { return None };
    if !routed.filters.is_empty() {
        return None;
    }
    let pick = routed.cluster?.pick(call, || head.authority).ok()?;
    let protocol = Protocol::of(head, version, pick.cluster, call.is_grpc);
    let lease = match pick.cluster.tls {
        ClusterTls::Unusable(_) => None,
        _ => connect::ready(pick.cluster, pick.in_flight.endpoint(), protocol),
    };
    Some(Open { routed, forward, pick, protocol, lease })
}

/// What a request keeps until its answer is there.
struct Trip {
    view: Arc<TargetView>,
    place: Place,
    leaf: usize,
    /// Whether the route changes the response.
    changes: bool,
    call: Call,
    observed: Option<Box<Observed>>,
}

impl Trip {
    /// The last station.
    #[inline]
    fn arrive(&self, response: &mut Response<Incoming>) {
        if self.changes
            && let Some(routed) = self.view.at(self.place)
        {
            change::apply(routed.response_changes, response.headers_mut());
        }
        if let Some(observed) = &self.observed {
            observed.tell(&self.call, Some(response.status()), None);
        }
    }

    /// The last station of a request that failed.
    #[cold]
    fn fail(&self, why: impl FnOnce(&ClusterView) -> MeshError) -> MeshError {
        let error = match self.course() {
            Ok(course) => route::within(&course.routed, why(course.destination)),
            Err(error) => error,
        };
        if let Some(observed) = &self.observed {
            observed.tell(&self.call, None, Some(&error));
        }
        error
    }

    /// The long way from here: a connection to the endpoint has to be waited for.
    async fn connect(self, in_flight: InFlight, request: Request<Body>) -> Result<Response<ResponseBody>, MeshError> {
        let view = Arc::clone(&self.view);
        let Course { policy, destination, cluster, .. } = Course::of(&view, self.place, self.leaf)?;
        let first = Pick { cluster, leaf: self.leaf, in_flight };
        self.tries(destination, async |call| attempt::run(&view, destination, policy, call, request, Some(first)).await)
            .await
    }

    /// The long way, from a try that failed.
    async fn go_on(self, in_flight: InFlight, failure: Failure) -> Result<Response<ResponseBody>, MeshError> {
        let (view, leaf) = (Arc::clone(&self.view), self.leaf);
        let Course { policy, destination, cluster, .. } = Course::of(&view, self.place, leaf)?;
        self.tries(destination, async |call| {
            if failure.stale
                && let Some(request) = failure.request
            {
                let first = Pick { cluster, leaf, in_flight };
                return attempt::run(&view, destination, policy, call, *request, Some(first)).await;
            }
            call.tried.push(Arc::clone(in_flight.endpoint()));
            let failure = failure.within(cluster, in_flight.endpoint());
            drop(in_flight);
            let request = attempt::next(policy, call, failure).await?;
            attempt::run(&view, destination, policy, call, request, None).await
        })
        .await
    }

    /// Tries up to the deadline, and the last station.
    async fn tries(
        mut self,
        destination: &ClusterView,
        tries: impl AsyncFnOnce(&mut Call) -> Result<(Response<Incoming>, Guard), MeshError>,
    ) -> Result<Response<ResponseBody>, MeshError> {
        let deadline = self.call.deadline;
        match route::in_time(deadline, destination, tries(&mut self.call)).await {
            Ok((mut response, guard)) => {
                self.arrive(&mut response);
                let deadline = deadline.map(ResponseBody::until);
                Ok(response.map(|body| ResponseBody::incoming(body, guard, deadline)))
            }
            Err(error) => Err(self.fail(|_| error)),
        }
    }

    fn course(&self) -> Result<Course<'_>, MeshError> {
        Course::of(&self.view, self.place, self.leaf)
    }
}

/// Where a request went, looked up again in its view.
struct Course<'v> {
    routed: Routed<'v>,
    policy: Option<&'v RetryPolicy>,
    destination: &'v ClusterView,
    cluster: &'v Arc<Cluster>,
}

impl<'v> Course<'v> {
    fn of(view: &'v TargetView, place: Place, leaf: usize) -> Result<Self, MeshError> {
        let find = || {
            let routed = view.at(place)?;
            let RouteAction::Forward(Forward { retry, .. }) = &routed.route.action else { return None };
            let destination = routed.cluster?;
            let cluster = &destination.leaves().get(leaf)?.cluster;
            Some(Course { routed, policy: retry.as_ref(), destination, cluster })
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
        let this = self.project();
        if let Some(again) = this.again {
            return Pin::new(again).poll(cx);
        }
        let Poll::Ready(answer) = this.exchange.poll(cx) else {
            let Some((trip, _)) = this.trip else { return Poll::Pending };
            let Some(until) = trip.call.deadline else { return Poll::Pending };
            ready!(this.deadline.get_or_insert_with(|| ResponseBody::until(until)).as_mut().poll(cx));
            return Poll::Ready(Err(trip.fail(route::too_late)));
        };
        let (trip, in_flight) = this.trip.take().expect("a future is not polled after it returned");
        match answer {
            Ok((mut response, lease)) => {
                trip.arrive(&mut response);
                let deadline = this.deadline.take().or_else(|| trip.call.deadline.map(ResponseBody::until));
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
