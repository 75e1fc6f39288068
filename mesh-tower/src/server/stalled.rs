//! Answers over HTTP/2 of which a client takes nothing while it goes on with other requests: each would be held for as long as the
//! connection lasts. (Its last piece is the HTTP library's, and takes the place of a stream until it is taken: see `PIECE`.)
//!
//! An answer's task knows only that it waits. Whether that is for the client, its body says ([`note`]), which is polled within: it has
//! handed something out, and was not asked for more since. A timer is made where that is so, and for no other request.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::server::monitor::{Activity, Signal};

/// What an answer's body did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Something was handed out: the client is to take it.
    Handed,
    /// It has nothing: the application is at work.
    Asked,
}

thread_local! {
    /// The last step within the task that is polled.
    static LAST: Cell<Option<Step>> = const { Cell::new(None) };
}

/// Says whether the answer's body has handed something out, or has nothing.
#[inline]
pub(super) fn note(is_handed: bool) {
    LAST.set(Some(if is_handed { Step::Handed } else { Step::Asked }));
}

pin_project! {
    /// The task of one answer. It ends, and so resets its stream, when nothing of the answer is taken for `limit`; where its client
    /// asked for nothing else meanwhile, and waits for nothing else, the connection ends.
    pub(super) struct Stallable<F> {
        #[pin]
        stream: F,
        activity: Arc<Activity>,
        limit: Duration,
        // Since when it waits for its client, and how many requests there had been.
        since: Option<(Instant, usize)>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F> Stallable<F> {
    pub(super) fn new(stream: F, activity: Arc<Activity>, limit: Duration) -> Self {
        Stallable { stream, activity, limit, since: None, timer: None }
    }
}

impl<F: Future> Future for Stallable<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        LAST.set(None);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match LAST.get() {
            Some(Step::Handed) => *this.since = Some((Instant::now(), this.activity.requests())),
            Some(Step::Asked) => *this.since = None,
            None => {}
        }
        let Some((since, requests)) = *this.since else { return Poll::Pending };
        let end = since + *this.limit;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= end {
                break;
            }
            // Something was taken since it was set.
            timer.as_mut().reset(end);
        }
        if this.activity.requests() == requests && this.activity.waits_for_its_client() {
            this.activity.tell(Signal::CutUnread);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::Waker;

    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    fn poll(task: &mut Pin<Box<impl Future<Output = ()>>>) -> bool {
        task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A task whose answer takes the step that is written there, if there is one.
    fn task(activity: &Arc<Activity>) -> (Arc<Mutex<Option<bool>>>, Pin<Box<impl Future<Output = ()> + use<>>>) {
        let next = Arc::<Mutex<Option<bool>>>::default();
        let (taken, mut answer) = (Arc::clone(&next), activity.begin());
        let stream = std::future::poll_fn(move |_| {
            let next = taken.lock().expect("nobody panics").take();
            next.into_iter().for_each(|is_handed| answer.note_handed(is_handed));
            Poll::<()>::Pending
        });
        (next, Box::pin(Stallable::new(stream, Arc::clone(activity), LIMIT)))
    }

    #[tokio::test(start_paused = true)]
    async fn h8_an_answer_of_which_nothing_is_taken_ends_and_one_that_is_made_or_taken_slowly_does_not() {
        let activity = Activity::new();
        let (next, mut task) = task(&activity);
        let mut ends = async |step: Option<bool>, seconds: u64| {
            *next.lock().expect("nobody panics") = step;
            assert!(!poll(&mut task));
            advance(Duration::from_secs(seconds)).await;
            poll(&mut task)
        };
        assert!(!ends(None, 1000).await, "the application is at work on the head");
        for _ in 0..5 {
            assert!(!ends(Some(true), 299).await, "something is taken in time");
        }
        assert!(!ends(Some(false), 1000).await, "the application is at work on the body");
        assert!(!ends(Some(true), 299).await);
        drop(activity.begin());
        assert!(ends(None, 2).await, "nothing was taken");
        assert_eq!(activity.signal(Waker::noop()), Signal::GoOn, "its client goes on with others");
    }

    #[tokio::test(start_paused = true)]
    async fn h8_a_client_that_waits_for_nothing_else_is_cut_off_altogether() {
        let activity = Activity::new();
        let (next, mut task) = task(&activity);
        *next.lock().expect("nobody panics") = Some(true);
        assert!(!poll(&mut task));
        advance(LIMIT).await;
        assert!(poll(&mut task));
        assert_eq!(activity.signal(Waker::noop()), Signal::CutUnread);
    }
}
