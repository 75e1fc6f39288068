//! The connection of the stream that is open now, for those who tell the server something over it.

use tokio::sync::watch;
use tonic::transport::Channel;

/// The connection of the present stream, and which stream that is.
pub(crate) type Open = Option<(u64, Channel)>;

/// Waits until a stream is open; `None` once nobody opens any.
pub(crate) async fn opened(open: &mut watch::Receiver<Open>) -> Open {
    open.wait_for(Option::is_some).await.ok()?.clone()
}

/// One stream's word on its connection, for as long as the stream lasts.
#[derive(Debug)]
pub(crate) struct OpenStream {
    open: watch::Sender<Open>,
    number: u64,
}

impl OpenStream {
    /// A stream by its number, whose connection is not there yet.
    pub(crate) fn new(open: &watch::Sender<Open>, number: u64) -> OpenStream {
        OpenStream { open: open.clone(), number }
    }

    /// It is open, over this connection; or, with none, nothing is to be told over it.
    pub(crate) fn set(&self, channel: Option<&Channel>) {
        self.open.send_replace(channel.map(|channel| (self.number, channel.clone())));
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        // Another stream may have taken its place already.
        self.open.send_if_modified(|open| open.take_if(|(number, _)| *number == self.number).is_some());
    }
}
