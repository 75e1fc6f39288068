//! Streams that level out: when one that lasts should move to another endpoint, and a call that does so.
//!
//! The mesh balances a stream when it begins, and cannot move it: only the application knows how to go on elsewhere. On a channel
//! that is [`following`](crate::Channel::following), each response has a [`MoveAdvice`], which says when to move;
//! [`resuming`] moves a server-streaming call by itself, for an application that says how to go on after its last message.
//!
//! ```no_run
//! use mesh_tonic::streams::{Leveling, resuming};
//! use tonic_health::pb::health_client::HealthClient;
//! use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
//!
//! # async fn example(mesh: &mesh_tower::Mesh) -> Result<(), tonic::Status> {
//! let client = HealthClient::new(mesh_tonic::channel(mesh, "xds:///orders:50051").following());
//! // A watch begins with the present state, whatever was seen before.
//! let mut states = resuming(Leveling::default(), move |_seen: Option<HealthCheckResponse>| {
//!     let mut client = client.clone();
//!     async move { client.watch(HealthCheckRequest::default()).await }
//! });
//! while let Some(state) = states.message().await? {
//!     println!("{:?}", state.status());
//! }
//! # Ok(()) }
//! ```

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

pub use mesh_core::balance::Leveling;
use mesh_core::state::Leaving;
use mesh_tower::client::Placement;
use tokio::time::{Instant, sleep_until};
use tonic::{Extensions, Response, Status, Streaming};

/// When a stream should move: of the endpoints that its client uses, its own has more than a fair share under way, or takes no
/// more requests.
///
/// It looks at the loads now and then, and decides by chance, so that of many streams as many are advised as are too many
/// (see [`Leveling`]). As long as it is about to leave, it should hold a
/// [`Leaving`] of its endpoint, so that no others go in its place. Nothing happens by itself: who is advised opens another call and ends this one, or does not.
#[derive(Debug)]
pub struct MoveAdvice {
    placement: Placement,
    leveling: Leveling,
    opened: Instant,
    /// When the stream moved last.
    moved: Option<Instant>,
    next_look: Instant,
    random: fastrand::Rng,
}

impl MoveAdvice {
    /// That of a stream which has just been answered, by the response's extensions. `moved` says when it moved last, if it
    /// goes on with another one. `None` where its channel does not follow, or the mesh answered itself.
    pub fn of(extensions: &Extensions, leveling: Leveling, moved: Option<Instant>) -> Option<MoveAdvice> {
        let placement = extensions.get::<Placement>()?.clone();
        let (opened, mut random) = (Instant::now(), fastrand::Rng::new());
        let next_look = opened + leveling.pause(&mut random);
        Some(MoveAdvice { placement, leveling, opened, moved, next_look, random })
    }

    /// The endpoint that answers the stream.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Waits until the stream should move. Dropping it loses nothing; asked again, it looks again after a while.
    pub async fn advised(&mut self) {
        loop {
            sleep_until(self.next_look).await;
            let now = Instant::now();
            self.next_look = now + self.leveling.pause(&mut self.random);
            let since_move = self.moved.map(|moved| now - moved);
            let (loads, age) = (self.placement.loads(), now - self.opened);
            if self.leveling.should_move(loads, age, since_move, &mut self.random) {
                return;
            }
        }
    }
}

/// A server-streaming call that moves to another endpoint when it should. `open` makes the call: anew where it is given
/// nothing, else so that the first message is what comes after the one that it is given.
///
/// The channel of `open` has to be [`following`](crate::Channel::following), else the call stays where it is.
pub fn resuming<M, O, F>(leveling: Leveling, open: O) -> Resuming<M, O, F>
where
    M: Clone,
    O: FnMut(Option<M>) -> F,
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    Resuming { open, leveling, opening: None, current: None, last: None, is_over: false, moves: 0 }
}

/// A call that moves: see [`resuming`].
pub struct Resuming<M, O, F> {
    open: O,
    leveling: Leveling,
    /// A call that is on its way. It is kept when nobody waits for a message, or each wait would make another one.
    opening: Option<Opening<F>>,
    current: Option<Current<M>>,
    last: Option<M>,
    is_over: bool,
    moves: u64,
}

struct Opening<F> {
    call: Pin<Box<F>>,
    began: Instant,
    /// The endpoint that the stream is about to leave.
    _leaving: Option<Leaving>,
}

/// How long a stream that moves is not read, so that the other call can begin after its last message. Then it goes on, and
/// ends the move with its next message.
const HEAD_START: Duration = Duration::from_millis(500);

/// How long the call to another endpoint may take at all.
const LONGEST_OPENING: Duration = Duration::from_secs(10);

impl<F> Opening<F> {
    fn new(call: F, leaving: Option<Leaving>) -> Self {
        Opening { call: Box::pin(call), began: Instant::now(), _leaving: leaving }
    }
}

struct Current<M> {
    stream: Streaming<M>,
    advice: Option<MoveAdvice>,
}

impl<M> Current<M> {
    fn new(response: Response<Streaming<M>>, leveling: Leveling, moved: Option<Instant>) -> Self {
        let advice = MoveAdvice::of(response.extensions(), leveling, moved);
        Current { stream: response.into_inner(), advice }
    }
}

/// What is waited for.
enum Next<M> {
    Message(Result<Option<M>, Status>),
    /// The stream should move.
    Move,
    /// The call that was on its way is answered.
    Opened(Box<Result<Response<Streaming<M>>, Status>>),
    /// It took too long.
    Late,
}

impl<M, O, F> Resuming<M, O, F>
where
    M: Clone,
    O: FnMut(Option<M>) -> F,
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    /// The next message; `None` at the end. A move is not seen: the call goes on elsewhere after the last message, and stays
    /// where it is as long as it cannot: an endpoint that does not answer holds it up for half a second at most. Dropping the
    /// future loses no message.
    ///
    /// # Errors
    /// What the first call, or the stream, fails with. After it, and after the end, there is nothing.
    pub async fn message(&mut self) -> Result<Option<M>, Status> {
        loop {
            if self.is_over {
                return Ok(None);
            }
            if self.current.is_none() && self.opening.is_none() {
                self.opening = Some(Opening::new((self.open)(None), None));
            }
            match next(&mut self.current, &mut self.opening).await {
                Next::Opened(opened) => {
                    let _opening = self.opening.take();
                    self.opened(*opened)?;
                }
                Next::Late => self.opening = None,
                Next::Message(message) => {
                    // A call that is still on its way would bring this message once more.
                    self.opening = None;
                    match &message {
                        Ok(Some(message)) => self.last = Some(message.clone()),
                        Ok(None) | Err(_) => (self.is_over, self.current) = (true, None),
                    }
                    return message;
                }
                Next::Move => {
                    let leaving = self.placement().map(|placement| placement.endpoint().leaving());
                    self.opening = Some(Opening::new((self.open)(self.last.clone()), leaving));
                }
            }
        }
    }

    /// How often the call has moved.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// The endpoint that answers at present, where it is known.
    pub fn placement(&self) -> Option<&Placement> {
        Some(self.current.as_ref()?.advice.as_ref()?.placement())
    }

    /// The call that there is stays until another one is answered, by another endpoint.
    fn opened(&mut self, opened: Result<Response<Streaming<M>>, Status>) -> Result<(), Status> {
        if self.current.is_none() {
            let response = opened.inspect_err(|_| self.is_over = true)?;
            self.current = Some(Current::new(response, self.leveling, None));
            return Ok(());
        }
        let Ok(response) = opened else { return Ok(()) };
        let other = Current::new(response, self.leveling, Some(Instant::now()));
        let is_same = match (&other.advice, self.placement()) {
            (Some(advice), Some(placement)) => std::ptr::eq(&**advice.placement.endpoint(), &**placement.endpoint()),
            _ => true,
        };
        if !is_same {
            self.current = Some(other);
            self.moves += 1;
        }
        Ok(())
    }
}

/// Waits for the stream that there is, for the call that is on its way, or for both. Dropped, it loses nothing.
async fn next<M, F>(current: &mut Option<Current<M>>, opening: &mut Option<Opening<F>>) -> Next<M>
where
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let (current, opening) = match (current, opening) {
        (None, None) => return Next::Late,
        (None, Some(opening)) => return Next::Opened(Box::new(opening.call.as_mut().await)),
        (Some(current), opening) => (current, opening),
    };
    let Some(opening) = opening else {
        let advised = async {
            match &mut current.advice {
                Some(advice) => advice.advised().await,
                None => std::future::pending().await,
            }
        };
        return tokio::select! {
            // A stream that always has a message is not exempt.
            biased;
            () = advised => Next::Move,
            message = current.stream.message() => Next::Message(message),
        };
    };
    let began = opening.began;
    tokio::select! {
        biased;
        opened = opening.call.as_mut() => Next::Opened(Box::new(opened)),
        () = sleep_until(began + LONGEST_OPENING) => Next::Late,
        message = async {
            sleep_until(began + HEAD_START).await;
            current.stream.message().await
        } => Next::Message(message),
    }
}

impl<M, O, F> fmt::Debug for Resuming<M, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resuming").field("moves", &self.moves).field("is_over", &self.is_over).finish_non_exhaustive()
    }
}
