//! What the request that this task is serving hands on to the requests that are made for it: see [`Inherited`].

use std::cell::RefCell;
use std::sync::Arc;

use mesh_core::request_info::Inherited;
use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static CURRENT: Shared;
}

thread_local! {
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
    pub(crate) fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        // Most requests hand nothing on, and there is nothing yet.
        if self.0.is_none() && look(|_| ()).is_none() { work() } else { CURRENT.sync_scope(self.clone(), work) }
    }

    /// From here on nobody waits for the head of the answer.
    #[inline]
    pub(crate) fn is_answered(&mut self) {
        if let Some(inherited) = self.0.as_mut().filter(|inherited| inherited.answer_by.is_some()) {
            Arc::make_mut(inherited).answer_by = None;
        }
    }
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
    CURRENT.try_with(|current| current.0.as_deref().map(look)).ok().flatten()
}

/// Has all calls inherit this that a future makes.
pub fn scope<F: Future>(inherited: impl Into<Shared>, future: F) -> TaskLocalFuture<Shared, F> {
    CURRENT.scope(inherited.into(), future)
}

/// Has all calls inherit this that are made while `work` runs.
#[inline]
pub fn sync_scope<R>(inherited: impl Into<Shared>, work: impl FnOnce() -> R) -> R {
    inherited.into().during(work)
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
}
