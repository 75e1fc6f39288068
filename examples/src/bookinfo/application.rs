//! A whole bookinfo in one process: the control plane and every service, each with a mesh and an identity of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_control::ratelimit::{RateLimits, Store};
use mesh_tower::Mesh;

use super::manifests;
use super::productpage::product;
use super::service::{App, Running, Service};
use crate::node::{Control, Workload};

/// The name of the text below every phase; sorts before that of any phase, so that a phase wins.
const BASE: &str = "00-base.yaml";

/// The name of the text that says who may call whom.
const SECURITY: &str = "00-security.yaml";

/// The name of the text that says where requests are counted that several processes share a limit of.
const COUNTED: &str = "00-counted.yaml";

/// How many counters of such limits there may be.
const COUNTERS: usize = 10_000;

/// How long services get to find each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// A whole bookinfo. Dropping it ends it.
#[derive(Debug)]
pub struct Bookinfo {
    embedded: Arc<Embedded>,
    services: Vec<Running>,
}

impl Bookinfo {
    /// Starts the control plane, then every service, each on a free port.
    ///
    /// # Errors
    /// If there is no socket to be had, or a service is not let serve.
    pub async fn start() -> anyhow::Result<Self> {
        Bookinfo::start_at(any_port(), None).await
    }

    /// The same with the product page at this address, and with a directory of routes, if given, which the control
    /// plane reads whenever it changes.
    ///
    /// # Errors
    /// If there is no socket to be had, or a service is not let serve.
    pub async fn start_at(page: SocketAddr, config: Option<PathBuf>) -> anyhow::Result<Self> {
        let config = config.map_or_else(|| Config::yaml(""), Config::dir);
        let limits = Arc::new(RateLimits::new(Store::in_memory(COUNTERS)));
        limits.apply_texts([("bookinfo.yaml", "domain: bookinfo\n")]);
        let mut options = Options::default().dev();
        options.serve = options.serve.rate_limits(limits);
        let embedded = Embedded::start(config, options).await?;
        let counted = embedded.server().listen_rate_limits(any_port(), None).await?;
        embedded.set_yaml(COUNTED, &manifests::counted_at(counted))?;
        embedded.set_yaml(BASE, &manifests::base())?;
        embedded.set_yaml(SECURITY, &manifests::security())?;
        let mut bookinfo = Bookinfo { embedded: Arc::new(embedded), services: Vec::new() };
        for service in Service::all() {
            let listen = if service.app == App::Productpage { page } else { any_port() };
            let running = bookinfo.run(&service, listen).await;
            bookinfo.services.push(running.with_context(|| format!("cannot start {service} on {listen}"))?);
        }
        bookinfo.until_complete().await?;
        Ok(bookinfo)
    }

    /// Waits until every service has heard of the others that it calls. They started one after the other, and the
    /// first request of each asks for what it needs.
    async fn until_complete(&self) -> anyhow::Result<()> {
        let client = self.caller("starter")?.client();
        let complete = async {
            let mut good = 0;
            while good < 20 {
                let page = product(&client, None, PATIENCE).await;
                let is_good = page.1.is_some_and(|product| product.is_complete());
                good = if is_good { good + 1 } else { 0 };
            }
        };
        let late = |_| anyhow::anyhow!("the services do not find each other");
        tokio::time::timeout(PATIENCE, complete).await.map_err(late)
    }

    /// Starts one more of a service.
    ///
    /// # Errors
    /// If the address cannot be had, or the service is not let serve.
    pub async fn run(&self, service: &Service, listen: SocketAddr) -> anyhow::Result<Running> {
        let mesh = self.control().mesh(&service.workload()).start()?;
        Ok(service.start(mesh, listen).await?)
    }

    /// Stops each service once, one after the other, each replaced by a new one first.
    ///
    /// # Errors
    /// If a service cannot be started, or had to cut requests.
    pub async fn restart_all(&mut self) -> anyhow::Result<()> {
        for position in 0..self.services.len() {
            let service = self.services[position].service.clone();
            let fresh = self.run(&service, any_port()).await?;
            std::mem::replace(&mut self.services[position], fresh).stop().await?;
        }
        Ok(())
    }

    /// A mesh for somebody who calls the services, as anybody: with the service account `default`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn caller(&self, name: &str) -> anyhow::Result<Mesh> {
        self.caller_as(name, "default")
    }

    /// The same with this service account.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn caller_as(&self, name: &str, service_account: &str) -> anyhow::Result<Mesh> {
        Ok(self.control().mesh(&Workload::new(name, "v1").service_account(service_account)).start()?)
    }

    /// The control plane.
    pub fn embedded(&self) -> &Embedded {
        &self.embedded
    }

    /// The services that run.
    pub fn services(&self) -> &[Running] {
        &self.services
    }

    fn control(&self) -> Control {
        Control::Embedded(Arc::clone(&self.embedded))
    }

    /// Stops every service, callers first, and then the control plane.
    ///
    /// # Errors
    /// If requests had to be cut.
    pub async fn stop(self) -> io::Result<()> {
        let stopping = self.services.into_iter().map(Running::stop);
        futures_util::future::try_join_all(stopping).await?;
        if let Ok(embedded) = Arc::try_unwrap(self.embedded) {
            embedded.shutdown().await;
        }
        Ok(())
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}
