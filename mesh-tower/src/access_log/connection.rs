//! The line of a connection that is not HTTP.

use std::time::Instant;

use http::Method;
use mesh_core::error::MeshError;
use mesh_core::request_info::{Direction, Observers, RequestInfo};

/// A connection that is not HTTP: once this is dropped it has its line.
#[derive(Debug)]
pub(crate) struct ConnectionLog {
    /// What is known of it.
    pub(crate) info: RequestInfo,
    received: u64,
    sent: u64,
}

impl ConnectionLog {
    /// One that begins now, of which these are told.
    pub(crate) fn new(told: &Observers, direction: Direction) -> Self {
        let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::new());
        info.observe(told, direction, &Method::CONNECT);
        info.note_bytes();
        ConnectionLog { info, received: 0, sent: 0 }
    }

    /// Notes whether there is a connection to where it goes on. Where that is not noted, whoever wanted it gave it up before.
    pub(crate) fn opened<T>(&mut self, opened: &Result<T, MeshError>) {
        match opened {
            Ok(_) => self.info.note_complete(),
            Err(error) => self.info.note_error(error.kind()),
        }
    }

    /// Its client sent so many bytes.
    #[inline]
    pub(crate) fn received(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes as u64);
    }

    /// Its client was sent so many bytes.
    #[inline]
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64);
    }
}

impl Drop for ConnectionLog {
    fn drop(&mut self) {
        self.info.note_passed(self.received, self.sent);
    }
}
