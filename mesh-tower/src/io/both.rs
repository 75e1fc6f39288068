//! A future that both sides of a connection wait for.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Who waits: one task may read and another one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// Who reads.
    Reader,
    /// Who writes.
    Writer,
}

/// The last two tasks that polled a half, the last one in any case: an HTTP/1.1 connection is polled by its own task,
/// and by the one whose request it carries.
type Tasks = [Option<Waker>; 2];

/// A future that is polled by who reads and by who writes, and that wakes both: a future by itself knows only the task
/// that polled it last. While nothing happens, a poll is a comparison and a load.
pub(crate) struct Both<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    bell: Arc<Bell>,
    reader: Tasks,
    writer: Tasks,
}

/// What the future wakes.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    reader: Mutex<Tasks>,
    writer: Mutex<Tasks>,
}

impl<T> Both<T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), ..Bell::default() });
        Both { future: Box::pin(future), bell, reader: Tasks::default(), writer: Tasks::default() }
    }

    /// Whether a poll would change nothing: the task is known, and nothing has happened.
    #[inline]
    pub(crate) fn is_quiet(&self, cx: &Context<'_>, half: Half) -> bool {
        let [last, before] = match half {
            Half::Reader => &self.reader,
            Half::Writer => &self.writer,
        };
        let is_it = |known: &Option<Waker>| known.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
        // In this order, as in `poll`.
        (is_it(last) || is_it(before)) && !self.bell.rung.load(Ordering::Acquire)
    }

    /// Polls it, if something has happened since the last time. Not to be called again once it is ready.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, half: Half) -> Poll<T> {
        let (known, shared) = match half {
            Half::Reader => (&mut self.reader, &self.bell.reader),
            Half::Writer => (&mut self.writer, &self.bell.writer),
        };
        // Before the bell is looked at: who rings it later finds the task.
        if !known.iter().flatten().any(|known| known.will_wake(cx.waker())) {
            let [last, before] = known;
            *before = last.replace(cx.waker().clone());
            shared.lock().unwrap_or_else(PoisonError::into_inner).clone_from(known);
        }
        if self.bell.rung.load(Ordering::Acquire) { self.answer() } else { Poll::Pending }
    }

    #[cold]
    fn answer(&mut self) -> Poll<T> {
        self.bell.rung.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self.bell));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        for tasks in [&self.reader, &self.writer] {
            let tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner).clone();
            tasks.into_iter().flatten().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn both_are_woken_and_either_finds_it_ready() {
        for first in [Half::Reader, Half::Writer] {
            let (tell, told) = tokio::sync::oneshot::channel();
            let mut both = Both::new(told);
            let [reader, writer] = [Arc::<Woken>::default(), Arc::default()];
            for (task, half) in [(&reader, Half::Reader), (&writer, Half::Writer)] {
                let waker = Waker::from(Arc::clone(task));
                for _ in 0..3 {
                    assert!(both.poll(&mut Context::from_waker(&waker), half).is_pending());
                }
            }
            assert_eq!([&reader, &writer].map(|task| task.0.load(Ordering::Relaxed)), [0, 0]);
            tell.send(7).unwrap();
            assert_eq!([&reader, &writer].map(|task| task.0.load(Ordering::Relaxed)), [1, 1]);
            assert_eq!(both.poll(&mut Context::from_waker(Waker::noop()), first), Poll::Ready(Ok(7)));
        }
    }

    #[test]
    fn the_last_task_that_waits_is_woken_whoever_waited_before() {
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let mut both = Both::new(told);
        let tasks = [Arc::<Woken>::default(), Arc::default(), Arc::default(), Arc::default()];
        for task in [0, 1, 0, 2, 1, 2, 3].map(|task| &tasks[task]) {
            let waker = Waker::from(Arc::clone(task));
            assert!(both.poll(&mut Context::from_waker(&waker), Half::Reader).is_pending());
        }
        tell.send(()).unwrap();
        assert_eq!(tasks[3].0.load(Ordering::Relaxed), 1, "the last one");
    }
}
