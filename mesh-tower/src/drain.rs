//! Leaving without losing a request: first tell, then wait, then close.
//!
//! `begin` unsubscribes the listeners, so the control plane sends no more clients here; for the lame-duck time
//! the server still accepts, answering with `connection: close`; then the listeners take what has already
//! connected and stop accepting; a moment later every connection ends with its last request.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How long the listeners get to hand out what has already connected. One that nobody asks for connections any
/// more would not answer at all.
const HAND_OUT: Duration = Duration::from_secs(1);

/// How long after the last accept a connection may be told to end. Its client may not have sent the first
/// request yet, and would lose it.
const FIRST_REQUEST: Duration = Duration::from_millis(200);

/// Signals this soon after the first are the same one: `timeout` tells a process and then its group, a terminal the
/// group and a shell its children.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not begun.
    Serving,
    /// Still accepting, while clients learn that this server is leaving.
    LameDuck,
    /// The listeners take what has already connected, and nothing more.
    Closing,
    /// Nobody connects any more; connections end with their last request.
    Closed,
}

/// The drain of a mesh. Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use mesh_tower::drain::{Drain, Phase};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let drain = Drain::new(Duration::from_secs(1));
/// assert_eq!(drain.phase(), Phase::Serving);
/// drain.begin().await;
/// assert_eq!(drain.phase(), Phase::Closed);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<DrainState>,
}

#[derive(Debug)]
struct DrainState {
    phase: watch::Sender<Phase>,
    /// Whether the phase is past `Serving`: what every response asks, so it takes no lock.
    leaving: AtomicBool,
    /// How many listeners accept.
    listeners: watch::Sender<usize>,
    in_flight: AtomicUsize,
    idle: Notify,
    lame_duck: Duration,
}

impl Drain {
    /// A drain that has not begun. `lame_duck` is for how long the listeners go on accepting once it has.
    pub fn new(lame_duck: Duration) -> Self {
        let shared = DrainState {
            phase: watch::Sender::new(Phase::Serving),
            leaving: AtomicBool::new(false),
            listeners: watch::Sender::new(0),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            lame_duck,
        };
        Drain { shared: Arc::new(shared) }
    }

    /// Drains: returns when nobody connects any more. Connections may still be finishing then; see
    /// [`Drain::finished`]. Dropping the future does not stop the drain; calling it again waits for the same
    /// end. Needs a tokio runtime.
    pub async fn begin(&self) {
        let first = self.shared.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::LameDuck;
                self.shared.leaving.store(true, Ordering::Release);
            }
            first
        });
        if first {
            tokio::spawn(go_on(Arc::clone(&self.shared)));
        }
        self.reached(Phase::Closed).await;
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// Whether it has begun. Takes no lock.
    pub fn is_leaving(&self) -> bool {
        self.shared.leaving.load(Ordering::Acquire)
    }

    /// Waits until it has come this far.
    pub async fn reached(&self, phase: Phase) {
        reached(&mut self.watch(), phase).await;
    }

    /// Waits until it is closed and the last request is answered to the end of its body.
    pub async fn finished(&self) {
        self.reached(Phase::Closed).await;
        loop {
            let mut idle = std::pin::pin!(self.shared.idle.notified());
            idle.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// How many requests the server layer has let in and not answered to the end of the body.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Begins the drain when the process is told to end: SIGTERM or SIGINT; elsewhere than on Unix, Ctrl-C. A
    /// second signal, later than a quarter of a second, ends the process at once, with the status that the shell
    /// expects. Needs a tokio runtime with I/O.
    ///
    /// The first one ends no process: that is done when `main` returns, which has to wait for the end of the drain. What
    /// [`crate::server::serve`] and `mesh_tonic::serve` return is ready then; `axum::serve` and others have to be told by
    /// [`crate::Mesh::drained`], or the process stays, with nobody to connect to it.
    ///
    /// # Errors
    /// If the signals cannot be had.
    pub fn begin_on_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new()?;
        let (drain, mut phase) = (Arc::downgrade(&self.shared), self.watch());
        tokio::spawn(async move {
            tokio::select! {
                _ = signals.next() => {}
                // Nobody is left who could drain.
                _ = phase.wait_for(|_| false) => return,
            }
            let Some(shared) = drain.upgrade() else { return };
            let told = tokio::time::Instant::now();
            tracing::info!("told to end: draining");
            let drain = Drain { shared };
            let second = tokio::select! {
                code = after(told + SAME_SIGNAL, &mut signals) => code,
                code = async {
                    drain.begin().await;
                    tracing::info!("drained: whatever waits for that (`serve`, `Mesh::drained`) goes on, and the process may end");
                    std::future::pending::<i32>().await
                } => code,
            };
            tracing::warn!("told to end a second time: ending now");
            std::process::exit(second);
        });
        Ok(())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Counts a request in, until the guard is dropped.
    pub(crate) fn enter(&self) -> InFlight {
        self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.shared))
    }

    /// Counts a listener that accepts, until the guard is dropped.
    pub(crate) fn accepting(&self) -> Accepting {
        self.shared.listeners.send_modify(|count| *count += 1);
        Accepting(Arc::clone(&self.shared))
    }
}

/// Waits until a drain has come this far. One whose last owner is gone gets no further: pending for ever.
pub(crate) async fn reached(watched: &mut watch::Receiver<Phase>, phase: Phase) {
    if watched.wait_for(|present| *present >= phase).await.is_err() {
        std::future::pending().await
    }
}

async fn go_on(shared: Arc<DrainState>) {
    tokio::time::sleep(shared.lame_duck).await;
    shared.phase.send_replace(Phase::Closing);
    let mut listeners = shared.listeners.subscribe();
    let _ = tokio::time::timeout(HAND_OUT, listeners.wait_for(|count| *count == 0)).await;
    tokio::time::sleep(FIRST_REQUEST).await;
    shared.phase.send_replace(Phase::Closed);
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<DrainState>);

impl InFlight {
    /// Whether the drain has begun.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Acquire)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 && self.0.leaving.load(Ordering::Acquire) {
            self.0.idle.notify_waiters();
        }
    }
}

/// A listener that accepts.
#[derive(Debug)]
pub(crate) struct Accepting(Arc<DrainState>);

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.listeners.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Where signals come from.
trait SignalSource {
    /// The status of a process that the next signal ended: 128 and its number.
    fn next(&mut self) -> impl Future<Output = i32> + Send;
}

/// The first signal after this time.
async fn after(time: tokio::time::Instant, signals: &mut impl SignalSource) -> i32 {
    loop {
        let code = signals.next().await;
        if tokio::time::Instant::now() > time {
            return code;
        }
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

#[cfg(unix)]
impl SignalSource for Signals {
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 128 + 15,
            _ = self.interrupt.recv() => 128 + 2,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals)
    }
}

#[cfg(not(unix))]
impl SignalSource for Signals {
    async fn next(&mut self) -> i32 {
        match tokio::signal::ctrl_c().await {
            Ok(()) => 130,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_goes_through_its_phases_in_order_even_if_its_caller_goes_away() {
        let drain = Drain::new(Duration::from_secs(5));
        let begun = tokio::time::Instant::now();
        drop(tokio::time::timeout(Duration::from_millis(1), drain.begin()).await);
        assert!(drain.is_leaving());
        assert_eq!(drain.phase(), Phase::LameDuck);
        drain.reached(Phase::Closing).await;
        assert_eq!(begun.elapsed().as_secs(), 5);
        drain.begin().await;
        assert_eq!(drain.phase(), Phase::Closed);
    }

    /// A signal every 100 ms, counted.
    struct Steady(i32);

    impl SignalSource for Steady {
        async fn next(&mut self) -> i32 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.0 += 1;
            self.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn signals_within_a_quarter_of_a_second_are_the_same_one() {
        let told = tokio::time::Instant::now();
        assert_eq!(after(told + SAME_SIGNAL, &mut Steady(0)).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_does_not_stop_holds_the_drain_up_for_a_second_only() {
        let drain = Drain::new(Duration::ZERO);
        let _accepting = drain.accepting();
        let begun = tokio::time::Instant::now();
        drain.begin().await;
        assert_eq!(begun.elapsed(), HAND_OUT + FIRST_REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_finished_with_its_last_request() {
        let drain = Drain::new(Duration::ZERO);
        let (one, other) = (drain.enter(), drain.enter());
        drain.begin().await;
        drop(one);
        let finished = drain.finished();
        tokio::pin!(finished);
        assert!(tokio::time::timeout(Duration::from_secs(9), &mut finished).await.is_err());
        drop(other);
        finished.await;
        assert_eq!(drain.in_flight(), 0);
    }
}
