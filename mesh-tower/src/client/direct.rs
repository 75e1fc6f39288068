//! The short way: a request that nothing has to wait for goes to its connection before the call returns, and the
//! future holds no more than the exchange. It passes the same stations, as far as they are open; one that is not
//! leads the request to the long way, untouched.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Cluster, ClusterTls, Forward, RouteAction};
use mesh_core::request::RequestHead;
use mesh_core::state::InFlight;
use mesh_core::view::{ClusterView, Place, Routed, TargetView};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::connect::{self, Exchange, Failure, Guard, Lease, Protocol};
use super::route::{self, Observed};
use super::{FixedTarget, ResponseFuture, attempt, change};
use crate::body::{Body, ResponseBody};
use crate::mesh::Mesh;

/// Everything that a request needs to be sent now.
pub(super) struct Ready {
    view: Arc<TargetView>,
    place: Place,
    leaf: usize,
    protocol: Protocol,
    in_flight: InFlight,
    lease: Lease,
}

/// What a request needs, if all of it is there.
pub(super) fn ready(
    mesh: &Mesh,
    target: Option<&FixedTarget>,
    request: &Request<Body>,
    call: &mut Call,
) -> Option<Ready> {
    let (view, head) = match target {
        Some(target) => (target.entry.view()?, RequestHead::with_authority(request, target.authority.as_str())),
        None => {
            let authority = match request.uri().authority() {
                // A name that the store knows is a valid one.
                Some(authority) => authority.as_str(),
                None => RequestHead::of_request(request).ok()?.authority,
            };
            (mesh.store().find(authority)?.view()?, RequestHead::with_authority(request, authority))
        }
    };
    let routed = view.find(&head, call).ok()?;
    let RouteAction::Forward(_) = &routed.route.action else { return None };
    if !routed.filters.is_empty() {
        return None;
    }
    let pick = routed.cluster?.pick(call, || head.authority).ok()?;
    if matches!(pick.cluster.tls, ClusterTls::Unusable(_)) {
        return None;
    }
    let protocol = Protocol::of(request, pick.cluster, call.is_grpc);
    let lease = connect::ready(pick.cluster, pick.in_flight.endpoint(), protocol)?;
    let (place, leaf, in_flight) = (routed.place, pick.leaf, pick.in_flight);
    Some(Ready { view, place, leaf, protocol, in_flight, lease })
}

impl Ready {
    /// Sends the request.
    pub(super) fn send(
        self,
        mesh: &Mesh,
        target: Option<&FixedTarget>,
        mut call: Call,
        mut request: Request<Body>,
    ) -> ResponseFuture {
        let Ready { view, place, leaf, protocol, in_flight, lease } = self;
        let observed = Observed::of(mesh, target, &call, &request);
        if call.is_observed {
            call.endpoint = Some(Arc::clone(in_flight.endpoint()));
        }
        let mut trip = Trip { view, place, leaf, call, observed };
        match trip.prepare(target, protocol, &mut request) {
            Ok(cluster) => {
                let exchange = connect::start(cluster, lease, request);
                let trip = Some((trip, in_flight));
                ResponseFuture(Box::pin(Direct { exchange, deadline: None, trip, again: None }))
            }
            Err(error) => {
                connect::give_back(in_flight.endpoint(), lease);
                ResponseFuture(Box::pin(std::future::ready(trip.arrive(Err(error)))))
            }
        }
    }
}

/// What a request keeps until its answer is there.
struct Trip {
    view: Arc<TargetView>,
    place: Place,
    leaf: usize,
    call: Call,
    observed: Option<Box<Observed>>,
}

impl Trip {
    /// Where the request goes: its route, and of an aggregate cluster the leaf.
    fn course(&self) -> Result<Course<'_>, MeshError> {
        course(&self.view, self.place, self.leaf)
    }

    /// Makes the request what its cluster is to see.
    fn prepare(
        &mut self,
        target: Option<&FixedTarget>,
        protocol: Protocol,
        request: &mut Request<Body>,
    ) -> Result<&Cluster, MeshError> {
        let course = course(&self.view, self.place, self.leaf)?;
        route::limit(&mut self.call, course.forward, &course.routed);
        change::prepare(request, course.forward, &course.routed, target.map(|target| &target.authority))?;
        protocol.form(request, self.view.host())?;
        Ok(course.cluster)
    }

    /// The last station.
    fn arrive(&self, answer: Result<Response<ResponseBody>, MeshError>) -> Result<Response<ResponseBody>, MeshError> {
        let result = self.course().and_then(|course| route::arrive(&course.routed, answer));
        if let Some(observed) = &self.observed {
            observed.tell(&self.call, &result);
        }
        result
    }

    fn too_late(&self) -> Result<Response<ResponseBody>, MeshError> {
        let error = self.course().map_or_else(|error| error, |course| route::too_late(course.destination));
        self.arrive(Err(error))
    }

    /// The long way, from a try that failed.
    async fn go_on(mut self, in_flight: InFlight, failure: Failure) -> Result<Response<ResponseBody>, MeshError> {
        let call = &mut self.call;
        let Course { forward, destination, cluster, .. } = course(&self.view, self.place, self.leaf)?;
        let policy = forward.retry.as_ref();
        let stale = failure.stale;
        let failure = failure.within(cluster, in_flight.endpoint());
        if !stale {
            call.tried.push(Arc::clone(in_flight.endpoint()));
        }
        drop(in_flight);
        let deadline = call.deadline;
        let tries = async {
            let request = match failure.request {
                Some(request) if stale => *request,
                request => attempt::next(policy, call, Failure { request, ..failure }).await?,
            };
            attempt::run(&self.view, destination, policy, call, request).await
        };
        let answer = route::in_time(deadline, destination, tries).await;
        let answer = answer.map(|(response, guard)| {
            response.map(|body| ResponseBody::incoming(body, guard, deadline.map(ResponseBody::until)))
        });
        self.arrive(answer)
    }
}

/// Where a request goes, looked up again in its view.
struct Course<'v> {
    routed: Routed<'v>,
    forward: &'v Forward,
    destination: &'v ClusterView,
    cluster: &'v Cluster,
}

fn course(view: &TargetView, place: Place, leaf: usize) -> Result<Course<'_>, MeshError> {
    let found = || {
        let routed = view.at(place)?;
        let RouteAction::Forward(forward) = &routed.route.action else { return None };
        let destination = routed.cluster?;
        Some(Course { routed, forward, destination, cluster: &destination.leaves().get(leaf)?.cluster })
    };
    found().ok_or_else(|| MeshError::new(ErrorKind::NoRoute, "the route is not the view's"))
}

pin_project! {
    /// A request on the short way.
    struct Direct<F> {
        #[pin]
        exchange: Exchange<F>,
        // Runs from when the exchange has to be waited for.
        deadline: Option<Pin<Box<Sleep>>>,
        // Taken when the exchange ends.
        trip: Option<(Trip, InFlight)>,
        // Where the request went on after its first try failed.
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
            return Poll::Ready(trip.too_late());
        };
        let (trip, in_flight) = this.trip.take().expect("a future is not polled after it returned");
        match answer {
            Ok((response, lease)) => {
                let deadline = this.deadline.take().or_else(|| trip.call.deadline.map(ResponseBody::until));
                let guard = Guard::new(in_flight, lease);
                Poll::Ready(trip.arrive(Ok(response.map(|body| ResponseBody::incoming(body, guard, deadline)))))
            }
            Err(failure) => {
                let again = this.again.insert(ResponseFuture(Box::pin(trip.go_on(in_flight, failure))));
                Pin::new(again).poll(cx)
            }
        }
    }
}
