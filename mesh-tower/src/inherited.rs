//! What the request that this task is serving hands on to the requests that are made for it: see [`Inherited`].

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_core::request_info::Inherited;
use pin_project_lite::pin_project;

thread_local! {
    /// What calls inherit that are made now. Whoever polls puts it there, and takes it back: tokio's task-locals would have a value
    /// of their own for each poll, and so a count that is written twice.
    static CURRENT: RefCell<Shared> = const { RefCell::new(Shared(None)) };
    /// Memory of what is over: a request that hands something on costs no allocation.
    static SPARE: RefCell<Vec<Arc<Inherited>>> = const { RefCell::new(Vec::new()) };
}

/// How much of it a thread keeps.
const MOST_SPARE: usize = 64;

/// What is inherited, shared by all that inherit it: every poll swaps it in and out.
#[derive(Clone, Debug, Default)]
pub struct Shared(Option<Arc<Inherited>>);

impl From<Inherited> for Shared {
    #[inline]
    fn from(inherited: Inherited) -> Self {
        if inherited.is_nothing() {
            return Shared(None);
        }
        let spare = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop()).ok().flatten();
        if let Some(mut memory) = spare
            && let Some(place) = Arc::get_mut(&mut memory)
        {
            *place = inherited;
            return Shared(Some(memory));
        }
        Shared(Some(Arc::new(inherited)))
    }
}

impl Drop for Shared {
    #[inline]
    fn drop(&mut self) {
        let Some(mut memory) = self.0.take() else { return };
        // Somebody else still has it.
        let Some(place) = Arc::get_mut(&mut memory) else { return };
        *place = Inherited::default();
        // A thread that ends keeps nothing.
        _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < MOST_SPARE
            {
                spare.push(memory);
            }
        });
    }
}

impl Shared {
    /// Has all calls inherit this that are made while `work` runs.
    #[inline]
    pub(crate) fn during<R>(&mut self, work: impl FnOnce() -> R) -> R {
        // Most requests hand nothing on, and there is nothing yet.
        if self.0.is_none() && look(|_| ()).is_none() {
            return work();
        }
        let _lent = Lent::new(self);
        work()
    }

    /// From here on nobody waits for the head of the answer.
    #[inline]
    pub(crate) fn is_answered(&mut self) {
        if let Some(inherited) = self.0.as_mut().filter(|inherited| inherited.answer_by.is_some()) {
            Arc::make_mut(inherited).answer_by = None;
        }
    }
}

/// What is inherited, while it is what calls inherit; the one before stands in its place. They change back however the work ends.
struct Lent<'s>(&'s mut Shared);

impl<'s> Lent<'s> {
    #[inline]
    fn new(inherited: &'s mut Shared) -> Self {
        swap(inherited);
        Lent(inherited)
    }
}

impl Drop for Lent<'_> {
    #[inline]
    fn drop(&mut self) {
        swap(self.0);
    }
}

/// Changes places with what calls inherit.
#[inline]
fn swap(inherited: &mut Shared) {
    // A thread that ends calls nobody.
    _ = CURRENT.try_with(|current| {
        if let Ok(mut current) = current.try_borrow_mut() {
            std::mem::swap(inherited, &mut *current);
        }
    });
}

/// What calls of this task inherit now. Below [`Mesh::server_layer`](crate::Mesh::server_layer) that is what the headers of
/// the request say, and elsewhere nothing. The mesh's own clients do so by themselves; a call that another task makes has to
/// be given it:
///
/// ```
/// use mesh_tower::inherited;
///
/// let request = http::Request::get("http://ratings/").extension(inherited::current()).body(())?;
/// # Ok::<(), http::Error>(())
/// ```
#[inline]
pub fn current() -> Inherited {
    look(Inherited::clone).unwrap_or_default()
}

/// Looks at what calls of this task inherit; `None` where there is nothing.
#[inline]
pub(crate) fn look<R>(look: impl FnOnce(&Inherited) -> R) -> Option<R> {
    CURRENT.try_with(|current| current.try_borrow().ok()?.0.as_deref().map(look)).ok().flatten()
}

/// Has all calls inherit this that a future makes.
pub fn scope<F: Future>(inherited: impl Into<Shared>, future: F) -> Inheriting<F> {
    Inheriting { inherited: inherited.into(), future: Some(future) }
}

pin_project! {
    /// A future all of whose calls inherit something: see [`scope`].
    #[derive(Debug)]
    pub struct Inheriting<F> {
        inherited: Shared,
        // `None` only while it is dropped.
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Inheriting<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // What ends with it may tell of its trace.
            this.inherited.during(|| this.future.set(None));
        }
    }
}

impl<F: Future> Future for Inheriting<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let future = this.future.as_pin_mut().expect("it is there until it is dropped");
        this.inherited.during(|| future.poll(cx))
    }
}

/// Has all calls inherit this that are made while `work` runs.
#[inline]
pub fn sync_scope<R>(inherited: impl Into<Shared>, work: impl FnOnce() -> R) -> R {
    let mut inherited: Shared = inherited.into();
    inherited.during(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hides_what_was_there_before() {
        let attempt = || current().attempt;
        let mut second = Inherited::default();
        second.attempt = 2;
        let seen = sync_scope(second.clone(), || [attempt(), sync_scope(Inherited::default(), attempt), attempt()]);
        assert_eq!((seen, attempt()), ([2, 1, 2], 1));
        assert_eq!(sync_scope(Inherited::default(), || sync_scope(second, attempt)), 2);
    }

    #[test]
    fn what_was_there_is_there_again_however_the_work_ends() {
        let attempt = || current().attempt;
        let of = |attempt| {
            let mut inherited = Inherited::default();
            inherited.attempt = attempt;
            Shared::from(inherited)
        };
        let mut second = of(2);
        assert_eq!([second.during(attempt), attempt(), second.during(attempt)], [2, 1, 2]);
        second.during(|| {
            let work = std::panic::catch_unwind(|| sync_scope(of(3), || assert_eq!(attempt(), 0, "on purpose")));
            assert_eq!((work.is_err(), attempt()), (true, 2));
        });
        assert_eq!(attempt(), 1);
    }

    #[tokio::test]
    async fn a_future_inherits_from_its_first_poll_until_it_is_dropped() {
        struct Last(std::rc::Rc<std::cell::Cell<u32>>);
        impl Drop for Last {
            fn drop(&mut self) {
                self.0.set(current().attempt);
            }
        }
        let mut second = Inherited::default();
        second.attempt = 2;
        let work = async {
            let first = current().attempt;
            tokio::task::yield_now().await;
            [first, current().attempt]
        };
        assert_eq!((scope(second.clone(), work).await, current().attempt), ([2, 2], 1));
        let seen = std::rc::Rc::new(std::cell::Cell::new(0));
        let last = Last(std::rc::Rc::clone(&seen));
        drop(scope(second, async move { drop(last) }));
        assert_eq!((seen.get(), current().attempt), (2, 1));
    }
}
