//! Tries beside each other (hedging): where the policy wants it, a try that takes too long is not given up, and the next one
//! begins beside it. The first good answer is the request's, and the others are given up; of bad ones, the last.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::Response;
use http::request::Parts;
use mesh_core::error::MeshError;
use mesh_core::request_info::{AttemptEnd, grpc_status};
use mesh_core::retry::{self, TryOutcome};

use super::attempt::policy;
use super::request::{ActiveRequest, Rival, Rivals, Step};
use crate::body::Body;
use crate::transport::Transport;

impl<T: Transport> ActiveRequest<T> {
    /// Whether a try that takes too long is to go on.
    #[inline]
    pub(super) fn hedges(&self) -> bool {
        self.try_until.is_some()
            && self.route.as_ref().is_some_and(|route| retry::hedges(policy(&route.get()), &self.info))
    }

    /// The present try takes too long: the next one, beside it. `None`: there is none, and it has all the time that the
    /// request has.
    #[cold]
    pub(super) fn hedge(&mut self, exchange: &mut Option<Pin<Box<T::Exchange>>>) -> Option<(Step<T>, (Parts, Body))> {
        self.try_until = None;
        let selected = self.route.clone()?;
        let next = self.attempt.as_ref()?.beside(&selected.get(), &mut self.info)?;
        let (whole, sending) = self.replay.beside()?;
        let (connection, _retry) = (self.connection.take(), self.retry.take());
        let rival = Rival { exchange: exchange.take()?, connection, sending, attempt: self.attempt.take()?, _retry };
        self.rivals.get_or_insert_with(|| Box::new(Rivals(Vec::new()))).0.push(rival);
        Some((self.pause(next), whole))
    }

    /// Whether tries go on beside the present one.
    #[inline]
    pub(super) fn has_rivals(&self) -> bool {
        self.rivals.as_ref().is_some_and(|rivals| !rivals.0.is_empty())
    }

    /// What the request comes to by one of the tries beside the present one, which `is_over` where there is none any more.
    #[cold]
    pub(super) fn poll_rivals(
        &mut self,
        is_over: bool,
        cx: &mut Context<'_>,
    ) -> Option<Result<Response<T::Body>, MeshError>> {
        let mut at = 0;
        while let Some(rivals) = &mut self.rivals
            && let Some(rival) = rivals.0.get_mut(at)
        {
            let Poll::Ready(answer) = rival.exchange.as_mut().poll(cx) else {
                at += 1;
                continue;
            };
            let rival = rivals.0.remove(at);
            let is_last = is_over && rivals.0.is_empty();
            let ended = match answer {
                Ok(response) => self.rival_answered(rival, response, is_last).map(Ok),
                Err(error) => self.rival_failed(rival, error, is_last).map(Err),
            };
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// An answer came to a try beside the present one: whether it is the request's.
    fn rival_answered(
        &mut self,
        rival: Rival<T>,
        response: Response<T::Body>,
        is_last: bool,
    ) -> Option<Response<T::Body>> {
        let selected = self.route.clone()?;
        let route = selected.get();
        rival.attempt.note_answer(response.status(), response.headers(), &route, &mut self.info);
        let outcome = TryOutcome::Answered(response.status(), response.headers());
        if !is_last && retry::wants(policy(&route), outcome, &self.info) {
            let end = AttemptEnd::Answered(response.status(), grpc_status(response.headers()));
            self.info.note_attempt_end(rival.attempt.number, end);
            return None;
        }
        if let Some((present, _)) = self.end_attempt() {
            self.info.note_attempt_end(present.number, AttemptEnd::GivenUp);
        }
        self.info.note_winner(rival.attempt.number, rival.attempt.endpoint());
        (self.attempt, self.connection, self.retry) = (Some(rival.attempt), rival.connection, None);
        self.replay.follow(rival.sending);
        Some(response)
    }

    /// A try beside the present one failed: what the request fails with, if there is no other.
    fn rival_failed(&mut self, rival: Rival<T>, error: T::Error, is_last: bool) -> Option<MeshError> {
        let selected = self.route.clone()?;
        let route = selected.get();
        let failure = self.transport.failure(error, rival.connection, false);
        if failure.unreachable {
            rival.attempt.endpoint().note_unreachable(Instant::now(), &mut self.info.random);
        }
        rival.attempt.report_failure(failure.error.kind(), &route, &mut self.info);
        self.info.note_attempt_end(rival.attempt.number, AttemptEnd::Failed(failure.error.kind()));
        let error = rival.attempt.within(&route, failure.error);
        is_last.then(|| self.fail(error))
    }

    /// The answer is there: tries beside it are given up.
    #[cold]
    pub(super) fn give_up_rivals(&mut self) {
        for rival in self.rivals.take().into_iter().flat_map(|rivals| rivals.0) {
            self.info.note_attempt_end(rival.attempt.number, AttemptEnd::GivenUp);
        }
    }

    /// Whether the present answer is not the request's as long as there may be a better one.
    #[cold]
    pub(super) fn waits_for_a_better(&self, response: &Response<T::Body>) -> bool {
        let Some(route) = self.route.as_ref().filter(|_| self.has_rivals()) else { return false };
        let outcome = TryOutcome::Answered(response.status(), response.headers());
        retry::wants(policy(&route.get()), outcome, &self.info)
    }
}
