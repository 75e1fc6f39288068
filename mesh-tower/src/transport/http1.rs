//! HTTP/1.1: one request at a time, so idle connections wait on a stack; the one used last is used next.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Cluster;
use mesh_core::state::{ConnectionPermit, EndpointState};
use tokio::task::AbortHandle;

use super::Security;
use super::dial::HTTP1;
use super::interim::{Allowance, Limited};
use crate::body::Body;
use crate::io::Retired;

/// One connection. It ends when it is dropped, whatever it was doing.
pub(crate) struct Http1Connection {
    /// `None` where it ended as a request was sent.
    sender: Option<http1::SendRequest<Body>>,
    /// What drives it. Left to itself it would go on with a request that is over as long as its peer does not read it.
    driver: Driver,
    allowance: Allowance,
    retired: Retired,
    requests: u32,
    idle_for: Duration,
}

/// A connection's task; it ends with this.
struct Driver(Option<AbortHandle>);

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Http1Connection {
    /// Sends a request; `None` where there is nothing to send it by.
    #[inline]
    pub(super) fn send(
        &mut self,
        request: Request<Body>,
    ) -> Option<impl Future<Output = hyper::Result<Response<Incoming>>> + use<>> {
        self.requests += 1;
        self.allowance.begin();
        let response = self.sender.as_mut().map(|sender| sender.send_request(request));
        // Its task may have ended meanwhile. What comes just too late to be given back with the rest stays in its queue,
        // and is given back, as not sent, when nobody can send any more.
        drop(self.sender.take_if(|sender| sender.is_closed()));
        response
    }

    /// Whether it takes no more requests.
    #[inline]
    fn is_closed(&self) -> bool {
        self.retired.is() || self.sender.as_ref().is_none_or(http1::SendRequest::is_closed)
    }

    /// Whether it takes a request now.
    #[inline]
    fn is_ready(&self) -> bool {
        !self.retired.is() && self.sender.as_ref().is_some_and(http1::SendRequest::is_ready)
    }

    /// The head of the answer is there.
    #[inline]
    pub(super) fn answered(&self) {
        self.allowance.end();
    }

    /// Lets it go on by itself: it is a tunnel now.
    pub(super) fn hand_over(mut self) {
        self.driver.0 = None;
    }

    /// Whether the cluster allows another request after the next one.
    #[inline]
    pub(super) fn may_go_on(&self, cluster: &Cluster) -> bool {
        cluster.max_requests_per_connection.is_none_or(|max| self.requests.saturating_add(1) < max)
    }

    /// Whether it had carried a request before the present one.
    #[inline]
    pub(super) fn was_reused(&self) -> bool {
        self.requests > 1
    }
}

/// Connections that nobody uses.
#[derive(Default)]
pub(super) struct Http1Pool(Mutex<Vec<Http1Connection>>);

/// How long a connection may take to become ready after its last response, before another is dialled instead.
const SETTLE: Duration = Duration::from_millis(1);

/// How long after its last response a connection may take to become ready, before it is closed.
const STUCK: Duration = Duration::from_millis(500);

impl Http1Pool {
    /// A connection that is ready for a request now: of those, the one used last.
    #[inline]
    pub(super) fn ready(&self) -> Option<Http1Connection> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.last().is_some_and(Http1Connection::is_ready) {
            return idle.pop();
        }
        idle.iter().rposition(Http1Connection::is_ready).map(|position| idle.remove(position))
    }

    /// A connection that is ready for a request in a moment.
    pub(super) async fn take(&self) -> Option<Http1Connection> {
        loop {
            let mut connection = self.pop()?;
            if connection.is_closed() {
                continue;
            }
            if connection.is_ready() {
                return Some(connection);
            }
            // The response ended an instant ago and the connection's task has not run since.
            let Some(sender) = &mut connection.sender else { continue };
            let settled = Box::pin(tokio::time::timeout(SETTLE, sender.ready())).await;
            if let Ok(Ok(())) = settled {
                return Some(connection);
            }
        }
    }

    /// Takes a connection back, unless it has closed or retired.
    #[inline]
    pub(super) fn give_back(&self, mut connection: Http1Connection) {
        if !connection.is_closed() {
            connection.idle_for = Duration::ZERO;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    /// Counts time that has passed, and closes what has been idle for too long.
    pub(super) fn pass(&self, time: Duration, limit: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|connection| {
            connection.idle_for = connection.idle_for.saturating_add(time);
            // One that is not ready still sends what nobody waits for any more.
            let is_stuck = connection.idle_for > STUCK && !connection.is_ready();
            !connection.is_closed() && !is_stuck && connection.idle_for <= limit
        });
    }

    /// Closes one that nobody uses, so that another can be made in its place. Whether there was one.
    pub(super) fn make_room(&self) -> bool {
        self.pop().is_some()
    }

    fn pop(&self) -> Option<Http1Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Opens a connection. It is driven by a task of its own, which ends with it.
pub(super) async fn dial(
    cluster: &Cluster,
    endpoint: &EndpointState,
    security: Security,
    permit: ConnectionPermit,
) -> Result<Http1Connection, MeshError> {
    let stream = super::dial(cluster, endpoint, security, Some(HTTP1), permit).await?;
    let (allowance, retired) = (Allowance::default(), stream.retired().clone());
    let stream = Limited { stream, limit: allowance.clone() };
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| MeshError::new(ErrorKind::ConnectFailure, "HTTP/1.1 handshake").caused_by(error))?;
    let driver = tokio::spawn(async move {
        // Its end is seen by whoever holds the sender.
        let _ = connection.with_upgrades().await;
    });
    let driver = Driver(Some(driver.abort_handle()));
    Ok(Http1Connection { sender: Some(sender), driver, allowance, retired, requests: 0, idle_for: Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use std::hint::spin_loop;
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};

    use tokio::task::coop::unconstrained;

    use super::*;

    /// The few instructions that have to meet are seldom met, so it is tried often, with the one ahead or the other.
    const ROUNDS: u32 = 5_000;

    #[tokio::test]
    async fn a_request_that_is_sent_as_its_connection_ends_is_given_back_as_not_sent() {
        for round in 0..ROUNDS {
            let (stream, _peer) = tokio::io::duplex(64);
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let mut own = Http1Connection {
                sender: Some(sender),
                driver: Driver(None),
                allowance: Allowance::default(),
                retired: Retired::default(),
                requests: 0,
                idle_for: Duration::ZERO,
            };
            let begun = AtomicBool::new(false);
            let response = std::thread::scope(|scope| {
                scope.spawn(|| {
                    begun.store(true, Ordering::Release);
                    (0..round % 64).for_each(|_| spin_loop());
                    drop(connection);
                });
                while !begun.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                (0..round / 64 % 64).for_each(|_| spin_loop());
                own.send(Request::new(Body::empty())).expect("it had a sender")
            });
            // All rounds are one turn of this task, which has no more than a part of them to itself.
            let response = pin!(unconstrained(response));
            match response.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Err(error)) => assert!(error.is_canceled(), "{error:?}"),
                Poll::Ready(Ok(response)) => panic!("nobody answers: {response:?}"),
                Poll::Pending => panic!("round {round}: nobody will answer, nor say so"),
            }
            assert!(own.is_closed() && !own.is_ready());
        }
    }
}
