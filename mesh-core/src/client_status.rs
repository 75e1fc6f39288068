//! What a source of configuration knows and how it came by it: the content of CSDS (gRFC A40, A88) as data.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::resources::ResourceKey;

/// What a source knows at one moment. A source that follows no servers, such as [`crate::fixed::Fixed`], tells nothing.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ClientStatus {
    /// The id of this client's node.
    pub node_id: String,
    /// The management servers: by authority, then in order of preference.
    pub servers: Vec<ServerStatus>,
    /// The resources that are subscribed to, by kind and name.
    pub resources: Vec<ResourceStatus>,
    /// How many fields were set in resources and had no effect here, since the start: each counts, and is logged, once
    /// for each resource, 10,000 at most for each group of servers. [`ResourceStatus::ignored`] names those of now.
    pub ignored_fields: u64,
}

impl ClientStatus {
    /// Why nothing is known of something, as far as the servers are the reason: each that could not be reached, with
    /// the last error, or else who was asked.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// use mesh_core::client_status::{ClientStatus, ServerStatus};
    ///
    /// let (mut status, now) = (ClientStatus::default(), Instant::now());
    /// assert_eq!(status.silence(now), "no answer from the control plane");
    /// let mut server = ServerStatus::new("mesh:15010");
    /// server.error = Some("cannot connect: connection refused".to_owned());
    /// status.servers = vec![server];
    /// assert_eq!(status.silence(now), "no answer from the control plane mesh:15010: cannot connect: connection refused");
    /// let mut server = ServerStatus::new("mesh:15010");
    /// (server.connected, server.last_ack) = (true, Some(now));
    /// let now = now + Duration::from_millis(200);
    /// status.servers = vec![server];
    /// assert!(status.silence(now).ends_with("; other answers are arriving, the last one 0.2 s ago"), "{}", status.silence(now));
    /// ```
    pub fn silence(&self, now: Instant) -> String {
        let failed =
            self.servers.iter().filter_map(|server| Some(format!("{}: {}", server.uri, server.error.as_ref()?)));
        let mut servers: Vec<String> = failed.collect();
        // Much may have been asked for, and not all of it be there yet.
        let connected = self.servers.iter().filter(|server| server.connected && server.error.is_none());
        let last = connected.filter_map(|server| server.last_ack).max();
        let arriving = match last.map(|last| now.saturating_duration_since(last).as_secs_f64()) {
            Some(age) => format!("; other answers are arriving, the last one {age:.1} s ago"),
            None => String::new(),
        };
        if servers.is_empty() {
            let asked = self.servers.iter().filter(|server| server.connected);
            servers = asked.map(|server| format!("{}, which is connected", server.uri)).collect();
        }
        match servers.is_empty() {
            true => "no answer from the control plane".to_owned(),
            false => format!("no answer from the control plane {}{arriving}", servers.join("; ")),
        }
    }
}

/// One management server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Where it is.
    pub uri: String,
    /// Whether a stream to it is open and has had a response (gRFC A78, `grpc.xds_client.connected`), or was taken by a server that has
    /// nothing new to tell.
    pub connected: bool,
    /// When a response of it was last acknowledged or rejected.
    pub last_ack: Option<Instant>,
    /// How often it could not be reached or broke off before it had answered (`grpc.xds_client.server_failure`).
    pub failures: u64,
    /// Resources received from it that were accepted (`grpc.xds_client.resource_updates_valid`).
    pub accepted: u64,
    /// Resources received from it that were rejected (`grpc.xds_client.resource_updates_invalid`).
    pub rejected: u64,
    /// The last failure, until the next response.
    pub error: Option<String>,
}

impl ServerStatus {
    /// A server that nothing was heard of yet.
    pub fn new(uri: impl Into<String>) -> Self {
        ServerStatus {
            uri: uri.into(),
            connected: false,
            last_ack: None,
            failures: 0,
            accepted: 0,
            rejected: 0,
            error: None,
        }
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ResourceStatus {
    /// Its kind and name.
    pub key: ResourceKey,
    /// What the last news of it was.
    pub state: ResourceState,
    /// The version in use; empty while there is none.
    pub version: String,
    /// When the version in use arrived.
    pub last_updated: Option<SystemTime>,
    /// The version in use as it was received.
    pub raw: Option<RawResource>,
    /// What is wrong, while something is: the version in use may be fine all the same.
    pub error: Option<ErrorState>,
    /// Fields of the version in use that are set and have no effect here.
    pub ignored: Arc<[String]>,
}

impl ResourceStatus {
    /// A resource that was asked for.
    pub fn new(key: ResourceKey) -> Self {
        ResourceStatus {
            key,
            state: ResourceState::Requested,
            version: String::new(),
            last_updated: None,
            raw: None,
            error: None,
            ignored: Arc::default(),
        }
    }
}

/// A resource's bytes with their type.
#[derive(Clone, PartialEq, Eq)]
pub struct RawResource {
    /// The type URL.
    pub type_url: &'static str,
    /// The Protobuf bytes.
    pub value: Bytes,
}

impl fmt::Debug for RawResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.type_url, self.value.len())
    }
}

/// The last thing that went wrong with a resource.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ErrorState {
    /// What it was.
    pub details: Arc<str>,
    /// The version that was rejected; empty where the error is not about one.
    pub version: String,
    /// The rejected resource as it was received.
    pub raw: Option<RawResource>,
    /// When.
    pub at: SystemTime,
}

impl ErrorState {
    /// An error that is not about a version.
    pub fn new(details: impl Into<Arc<str>>, at: SystemTime) -> Self {
        ErrorState { details: details.into(), version: String::new(), raw: None, at }
    }
}

/// What the last news of a resource was (`envoy.admin.v3.ClientResourceStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResourceState {
    /// It was asked for, and there was no answer yet.
    #[default]
    Requested,
    /// The server said that there is none, or kept silent for too long.
    DoesNotExist,
    /// It was received and accepted.
    Acked,
    /// The last version of it was rejected.
    Nacked,
    /// The server reported an error of its own about it.
    ReceivedError,
    /// The server kept silent for too long, which is taken as its own fault.
    Timeout,
}

/// How a source tells others what it knows: it alone reads resources.
#[derive(Clone, Copy)]
pub struct Readings {
    /// Answers a question of CSDS from a status, both as messages of Protobuf.
    pub answer: fn(&ClientStatus, &[u8]) -> Result<Bytes, &'static str>,
    /// Shows a resource as Envoy's dump does, in part; with its type.
    pub show: fn(&ResourceStatus) -> Value,
}

/// Where the latest [`ClientStatus`] is found. Cheap to clone.
#[derive(Clone, Default)]
pub struct StatusHandle {
    latest: Arc<ArcSwap<ClientStatus>>,
    readings: Option<Readings>,
}

impl StatusHandle {
    /// One by which others can be told.
    pub fn told_by(readings: Readings) -> Self {
        StatusHandle { readings: Some(readings), ..StatusHandle::default() }
    }

    /// The answer to a question of CSDS (`envoy.service.status.v3`): a `ClientStatusResponse` to a `ClientStatusRequest`, as
    /// messages of Protobuf. Of a source that follows no servers it is empty.
    ///
    /// # Errors
    /// Why the question has no answer.
    pub fn answer(&self, request: &[u8]) -> Result<Bytes, &'static str> {
        self.readings.map_or(Ok(Bytes::new()), |readings| (readings.answer)(&self.get(), request))
    }

    /// A resource in the form of Envoy's dump of its configuration: its type and name, which addresses it has, where it leads to and
    /// by which conditions. Nothing secret, and no value of a header, is in it.
    pub fn show(&self, resource: &ResourceStatus) -> Value {
        self.readings.map_or_else(|| json!({ "name": &*resource.key.name }), |readings| (readings.show)(resource))
    }

    /// The latest status. It follows changes within a tenth of a second.
    pub fn get(&self) -> Arc<ClientStatus> {
        self.latest.load_full()
    }

    /// What everybody who holds the handle finds from now on. For sources.
    pub fn set(&self, status: ClientStatus) {
        self.latest.store(Arc::new(status));
    }
}

impl fmt::Debug for StatusHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusHandle")
    }
}
