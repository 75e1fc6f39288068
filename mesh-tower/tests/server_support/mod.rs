//! A source of configuration that a test plays itself, and servers' resources for it to play.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod frames;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::error::Invalid;
use mesh_core::id::{ListenerName, Target};
use mesh_core::model::{
    FilterChain, HttpManager, Listener, NamedFilter, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource,
    ServerListener, VirtualHost,
};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType, Update};
use mesh_core::store::{Sink, Source};
use mesh_tower::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// The source: it applies what the player sends, until the player is gone.
pub struct Played {
    updates: Mutex<Option<mpsc::UnboundedReceiver<Change>>>,
    wanted: watch::Sender<Vec<ResourceKey>>,
}

/// The hand that plays the control plane. When it is dropped, the control plane is gone for good.
pub struct Player {
    updates: mpsc::UnboundedSender<Change>,
    wanted: watch::Receiver<Vec<ResourceKey>>,
}

#[expect(clippy::disallowed_methods, reason = "a test sends a handful")]
pub fn played() -> (Player, Played) {
    let (updates, receiver) = mpsc::unbounded_channel();
    let wanted = watch::Sender::new(Vec::new());
    let player = Player { updates, wanted: wanted.subscribe() };
    (player, Played { updates: Mutex::new(Some(receiver)), wanted })
}

/// A mesh whose configuration the test plays.
pub fn mesh() -> (Player, Mesh) {
    let (player, source) = played();
    let mesh = Mesh::builder().source(source).lame_duck(Duration::from_millis(200));
    (player, mesh.cold_start_wait(Duration::from_secs(2)).start().expect("the mesh starts"))
}

impl Player {
    pub fn send(&self, change: Change) {
        self.updates.send(change).expect("the source runs");
    }

    /// Waits until this resource is subscribed to, so that all that was sent before is in force.
    pub async fn asks_for(&mut self, key: ResourceKey) {
        self.wanted.wait_for(|wanted| wanted.contains(&key)).await.expect("the source runs");
    }

    /// Waits until exactly these listeners are subscribed to.
    pub async fn wants(&mut self, addresses: &[SocketAddr]) {
        let keys: Vec<_> = addresses.iter().map(|address| key(*address)).collect();
        within(self.wanted.wait_for(|wanted| *wanted == keys)).await.expect("the source runs");
    }
}

/// Nothing in these tests takes this long.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}

/// Whether a request over this connection is answered, with a body that ends so; else the connection is closed.
pub async fn is_answered(stream: &mut TcpStream, path: &str, end: &str) -> bool {
    _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await;
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        match within(stream.read_buf(&mut answer)).await {
            Ok(1..) => {}
            _ => return false,
        }
    }
    true
}

pub fn key(address: SocketAddr) -> ResourceKey {
    ResourceKey::new(ResourceType::Listener, format!("server/{address}"))
}

/// The listener of an address with these chains, of which the last is the default.
pub fn listener(address: SocketAddr, mut chains: Vec<FilterChain>) -> Change {
    let default_filter_chain = chains.pop();
    let mut listener = ServerListener::new(format!("server/{address}"), address);
    (listener.filter_chains, listener.default_filter_chain) = (chains, default_filter_chain);
    Change::Put(key(address), Resource::Listener(Arc::new(Listener::Server(listener))))
}

pub fn absent(address: SocketAddr, reason: &str) -> Change {
    Change::Absent(key(address), reason.into())
}

/// A chain for every connection.
pub fn chain(routes: Vec<Route>, filters: Vec<NamedFilter>) -> FilterChain {
    let host = VirtualHost::new(["*"], routes);
    let config = RouteConfiguration::new(vec![host]);
    let mut http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
    http.filters = filters;
    FilterChain::new("chain", http)
}

/// A route of the application, for every request.
pub fn app_route() -> Route {
    Route::new(RouteMatch::any(), RouteAction::NonForwarding)
}

/// A listener that serves everything.
pub fn serve_all(address: SocketAddr) -> Change {
    listener(address, vec![chain(vec![app_route()], vec![])])
}

fn key_of(change: &Change) -> ResourceKey {
    match change {
        Change::Put(key, _) | Change::Absent(key, _) => key.clone(),
    }
}

impl Source for Played {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        Ok(target.as_str().into())
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        Ok(format!("server/{address}").into())
    }

    fn run(self: Arc<Self>, mut sink: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut updates = self.updates.lock().unwrap().take().expect("run once");
            let mut offered = HashMap::new();
            loop {
                let mut progress = tokio::select! {
                    update = updates.recv() => match update {
                        Some(change) => {
                            offered.insert(key_of(&change), change.clone());
                            sink.apply(Update { changes: vec![change] })
                        }
                        None => return,
                    },
                    progress = sink.changed() => match progress {
                        Some(progress) => progress,
                        None => return,
                    },
                };
                // What was offered before anybody asked.
                let mut wanted = progress.subscribe.clone();
                while !wanted.is_empty() {
                    let changes: Vec<_> = wanted.iter().filter_map(|key| offered.get(key).cloned()).collect();
                    wanted = sink.apply(Update { changes }).subscribe;
                    progress.subscribe.extend(wanted.iter().cloned());
                }
                self.wanted.send_modify(|wanted| {
                    wanted.extend(progress.subscribe);
                    wanted.retain(|key| !progress.unsubscribe.contains(key));
                });
            }
        })
    }
}

/// What is logged by this thread.
#[derive(Clone, Default)]
pub struct Log(pub Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
