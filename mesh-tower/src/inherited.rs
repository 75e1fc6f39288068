//! What the request that this task is serving hands on to the requests that are made for it: see [`Inherited`].

use mesh_core::request_info::Inherited;
use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static CURRENT: Inherited;
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
    CURRENT.try_with(look).ok()
}

/// Has all calls inherit this that a future makes.
pub fn scope<F: Future>(inherited: Inherited, future: F) -> TaskLocalFuture<Inherited, F> {
    CURRENT.scope(inherited, future)
}

/// Has all calls inherit this that are made while `work` runs.
#[inline]
pub fn sync_scope<R>(inherited: Inherited, work: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(inherited, work)
}
