//! The two threads that a mesh has of its own, so that nothing of what it does besides requests runs on the application's.

use std::io;
use std::sync::Arc;

use mesh_core::store::{Sink, Source, Targets};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::transport::{close_idle, look_after};

/// Starts both. One runs the source and makes views of what it delivers. The other looks after connections, checks
/// health and serves chores, all of which have deadlines that a flood of updates must not hold up. They end with the source, which
/// ends with its sink.
pub(crate) fn start(source: Arc<dyn Source>, sink: Sink, targets: Targets) -> io::Result<Handle> {
    let runtime = || Builder::new_current_thread().enable_all().build();
    let (background, configuration) = (runtime()?, runtime()?);
    let handle = background.handle().clone();
    let (source_lives, source_ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("mesh-background".into()).spawn(move || {
        background.block_on(async {
            tokio::spawn(look_after(targets.clone()));
            tokio::spawn(close_idle(targets));
            _ = source_ended.await;
        });
    })?;
    std::thread::Builder::new().name("mesh-config".into()).spawn(move || {
        configuration.block_on(source.run(sink));
        drop(source_lives);
    })?;
    Ok(handle)
}
