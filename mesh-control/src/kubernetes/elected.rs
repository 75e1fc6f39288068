//! One of several replicas writes into the cluster: while it holds the Lease, and no longer. All of them serve, whoever it is.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::client::{Client, Failure};
use super::hub::Cluster;
use super::lease::{Election, Lease, Step, Timing};
use super::status::CONTROLLER;
use super::write::{GATHERED, write};
use crate::config::file::is_namespace;
use crate::plane::Plane;

/// How long a question about the Lease may take: two of them, one after the other, are over before it would be.
const PATIENCE: Duration = Duration::from_secs(4);

/// Which Lease it is, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseName {
    namespace: String,
    name: String,
}

impl FromStr for LeaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<LeaseName, String> {
        // Kubernetes allows dots in the name of a Lease; nobody needs them here.
        let (namespace, name) = text.split_once('/').ok_or("expected NAMESPACE/NAME")?;
        match is_namespace(namespace) && is_namespace(name) {
            true => Ok(LeaseName { namespace: namespace.to_owned(), name: name.to_owned() }),
            false => Err("expected NAMESPACE/NAME, in small letters, digits and hyphens".to_owned()),
        }
    }
}

impl LeaseName {
    fn all(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.all(), self.name)
    }
}

/// As which controller of Gateway API it is said what became of objects (`controllerName`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControllerName(String);

impl Default for ControllerName {
    fn default() -> ControllerName {
        ControllerName(CONTROLLER.to_owned())
    }
}

impl FromStr for ControllerName {
    type Err = String;

    fn from_str(text: &str) -> Result<ControllerName, String> {
        let is_path = |path: &str| {
            !path.is_empty() && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
        };
        match text.split_once('/') {
            Some((domain, path)) if text.len() <= 253 && domain.split('.').all(is_namespace) && is_path(path) => {
                Ok(ControllerName(text.to_owned()))
            }
            _ => Err("expected DOMAIN/PATH, such as istio.io/gateway-controller".to_owned()),
        }
    }
}

impl ControllerName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Stands for election, and writes while it is elected.
#[derive(Debug)]
pub(crate) struct Elected {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Elected {
    /// Begins. What a plane makes of the objects of a cluster is written into their status by whoever holds the Lease, as this controller.
    pub(crate) fn start(cluster: &Cluster, plane: &Plane, lease: LeaseName, controller: ControllerName) -> Elected {
        Elected::start_at(cluster, plane, lease, controller, Timing::default(), GATHERED)
    }

    pub(super) fn start_at(
        cluster: &Cluster,
        plane: &Plane,
        lease: LeaseName,
        controller: ControllerName,
        timing: Timing,
        gathered: Duration,
    ) -> Elected {
        let (stop, mut stopped) = watch::channel(false);
        let (cluster, plane) = (cluster.clone(), plane.clone());
        let task = tokio::spawn(async move {
            let (held, holds) = watch::channel(None);
            let mut election = Election::new(own_name(), timing);
            tokio::select! {
                // It ends with whoever asked for it, too.
                () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {}
                () = stand(cluster.client(), &lease, &mut election, timing, &held) => {}
                () = write(&cluster, &plane, holds, &controller, gathered) => {}
            }
            release(cluster.client(), &lease, &mut election).await;
        });
        Elected { stop, task }
    }

    /// Stops, and leaves the Lease to the next one.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        // It has an end: so has every question.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Elected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Of this machine, or Pod, and of this process alone.
fn own_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}_{:016x}", fastrand::u64(..))
}

/// Looks at the Lease for good, and tells until when it is held.
async fn stand(
    client: &Client,
    lease: &LeaseName,
    election: &mut Election,
    timing: Timing,
    held: &watch::Sender<Option<Instant>>,
) {
    let mut is_told = false;
    loop {
        let was_held = election.until().is_some();
        if let Err(failure) = turn(client, lease, election).await {
            // Who writes matters to nobody for a while; that nobody does, to everybody.
            match failure {
                Failure::Status(StatusCode::CONFLICT, _) => debug!("the Lease {}: {failure}", lease.path()),
                _ if is_told => {}
                _ => {
                    warn!("the Lease {} cannot be had, and status is not written: {failure}", lease.path());
                    is_told = true;
                }
            }
        } else {
            is_told = false;
        }
        let until = election.until().filter(|until| Instant::now() < *until);
        if until.is_some() != was_held {
            match until {
                Some(_) => info!("this replica holds the Lease {}/{}, and writes status", lease.namespace, lease.name),
                None => info!("this replica does not hold the Lease {}/{} any more", lease.namespace, lease.name),
            }
        }
        held.send_replace(until);
        // Not all at the same moment.
        sleep(timing.look.mul_f64(0.9 + fastrand::f64() * 0.2)).await;
    }
}

/// One look, and what follows from it.
async fn turn(client: &Client, lease: &LeaseName, election: &mut Election) -> Result<(), Failure> {
    let seen = match client.get(&lease.path(), PATIENCE).await {
        Ok(bytes) => Some(read(&bytes)?),
        Err(Failure::Status(StatusCode::NOT_FOUND, _)) => None,
        Err(failure) => return Err(failure),
    };
    let asked = Instant::now();
    election.look(seen, asked);
    let stored = match election.step(asked, clock()) {
        Step::Wait => return Ok(()),
        Step::Make(new) => client.post(&lease.all(), new.object(&lease.name).to_string().into(), PATIENCE).await?,
        Step::Put(new) => client.put(&lease.path(), new.object(&lease.name).to_string().into(), PATIENCE).await?,
    };
    election.stored(read(&stored)?, asked);
    Ok(())
}

async fn release(client: &Client, lease: &LeaseName, election: &mut Election) {
    let Some(left) = election.release(clock()) else { return };
    let left = left.object(&lease.name).to_string().into();
    if let Err(failure) = client.put(&lease.path(), left, PATIENCE).await {
        debug!("the Lease {} is left to end by itself: {failure}", lease.path());
    }
}

fn read(bytes: &[u8]) -> Result<Lease, Failure> {
    let object: Value = serde_json::from_slice(bytes).map_err(|error| Failure::Lost(error.into()))?;
    Lease::of(&object).map_err(|why| Failure::Lost(anyhow::anyhow!(why)))
}

/// The time since 1970.
pub(super) fn clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
