//! What one server allows its clients.

use std::time::Duration;

/// What one server allows its clients, so that none of them can exhaust it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at once; more wait in the socket's backlog. 10,000 by default.
    pub max_connections: usize,
    /// The same of one client: more are closed. 5,000 by default, so that no client has them all. A client is an address, of
    /// IPv6 a network of 64 bits; of those whose connections come by one gateway, all together. One that floods ten
    /// connections, each within a minute of the one before, is let in again when a minute has passed.
    pub max_connections_per_client: usize,
    /// HTTP/2 streams at once, by connection. 100 by default.
    pub max_concurrent_streams: u32,
    /// The size of a request's head, in bytes: above it, 431. 64 KiB by default.
    pub max_head: u32,
    /// How long a request's head may take from its first byte on, and an HTTP/1.1 connection to its first
    /// request. 10 s by default.
    pub head_timeout: Duration,
    /// After how long without a request a connection is closed, at the earliest. 65 min by default: clients that
    /// follow Envoy close after an hour, and a server that is first may cross with a request.
    pub idle_timeout: Duration,
    /// How long an HTTP/1.1 client that has closed its side gets to wait for its answer: it cannot be told from one that is
    /// gone. Then the connection is closed and its handler dropped; until then calls that are made for it are made once, and
    /// neither tried again nor mirrored. A client gets as long to take the end of its connection,
    /// once [`idle_timeout`](Self::idle_timeout) is over. 30 s by default.
    pub half_close_timeout: Duration,
    /// How long a client may take next to nothing (16 KiB) of answers that are there for it, while it waits for nothing else:
    /// it would hold them for ever. Then the connection is closed. Over HTTP/2, an answer of which it takes nothing for as long is
    /// reset, though it goes on with others; but for its last 16 KiB, which stay with the connection and take the place of a stream. 5
    /// min by default, as Envoy gives a stream.
    pub stall_timeout: Duration,
    /// What a client may send ahead of what is read, by HTTP/2 stream, in bytes. 256 KiB by default.
    pub stream_window: u32,
    /// The same by connection. 1 MiB by default. Of frames of a few bytes that nobody has read yet, a client may send one for each
    /// 512 bytes of it; more end the connection.
    pub connection_window: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 10_000,
            max_connections_per_client: 5_000,
            max_concurrent_streams: 100,
            max_head: 64 << 10,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(65 * 60),
            half_close_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(5 * 60),
            stream_window: 256 << 10,
            connection_window: 1 << 20,
        }
    }
}
