//! Who a program is to the control plane and to others, and where the control plane is.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use mesh_control::embedded::Embedded;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::{Mesh, MeshBuilder};
use serde_json::{Map, Value, json};

use crate::cli::Printing;

/// Who a program is: its name, its namespace and service account, which are its identity, and the labels that services
/// select it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name; becomes part of the node's id.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Workload {
    /// A version of an application, labelled `app` and `version`, with the service account `default` of the namespace
    /// `default`.
    pub fn new(app: &str, version: &str) -> Self {
        let labels = [("app", app), ("version", version)];
        Workload {
            name: format!("{app}-{version}"),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    /// The same with this service account.
    ///
    /// ```
    /// use mesh_examples::node::Workload;
    ///
    /// // By mutual TLS it is spiffe://cluster.local/ns/default/sa/web, where the trust domain is Istio's default.
    /// assert_eq!(Workload::new("frontend", "v1").service_account("web").service_account, "web");
    /// ```
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Presents this workload in a bootstrap: an id that no other process has, and what Istio's agent would say.
    fn introduce(&self, bootstrap: Bootstrap) -> Bootstrap {
        let Workload { name, namespace, service_account, labels } = self;
        bootstrap.workload(name, namespace, service_account, labels, fastrand::u32(..))
    }
}

/// Where the control plane is.
#[derive(Clone, Debug)]
pub enum Control {
    /// A server, as `host:port`.
    Server(String),
    /// In this process.
    Embedded(Arc<Embedded>),
}

impl Control {
    /// A mesh of this workload, to be started; it sends traces, metrics and access logs where the environment says (`OTEL_*`).
    pub fn mesh(&self, workload: &Workload) -> MeshBuilder {
        Mesh::builder().traces_from_env().metrics_from_env().access_logs_from_env().source(match self {
            Control::Server(server) => XdsSource::new(workload.introduce(Bootstrap::new(server.as_str()))),
            Control::Embedded(embedded) => {
                embedded.source(workload.introduce(Bootstrap::new(embedded.xds_addr().to_string())))
            }
        })
    }
}

/// The options of a program that joins a mesh.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Join {
    /// The control plane, in plaintext. Without it the environment names the bootstrap, as for every xDS client:
    /// GRPC_XDS_BOOTSTRAP (a file) or GRPC_XDS_BOOTSTRAP_CONFIG (the JSON itself).
    #[arg(long, aliases = ["server", "xds-addr"], value_name = "HOST:PORT")]
    pub control: Option<String>,
    /// The namespace of this program [default: the bootstrap's, else "default"].
    #[arg(long)]
    pub namespace: Option<String>,
    /// The service account of this program: with the namespace, who it is to others [default: the bootstrap's, else
    /// "default", or of a service of bookinfo its own].
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// A label of this program, which services select it by; may be repeated [default: the bootstrap's, else app
    /// and version].
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::text::label)]
    pub labels: Vec<(String, String)>,
    /// Counts requests, and serves metrics, readiness and what is known of the mesh here, for whoever asks: on a loopback
    /// address, unless --admin-anywhere is given, or over a socket of this user's (unix:PATH).
    #[arg(long, value_name = "HOST:PORT|unix:PATH")]
    pub admin_addr: Option<String>,
    /// Lets --admin-addr be any address: whoever reaches it reads what this process knows.
    #[arg(long, requires = "admin_addr")]
    pub admin_anywhere: bool,
}

impl Join {
    /// A mesh for a program that is this workload, where the options do not say otherwise.
    ///
    /// # Errors
    /// If the environment has no usable bootstrap.
    pub fn mesh(&self, mut workload: Workload) -> anyhow::Result<MeshBuilder> {
        let Some(server) = &self.control else {
            let bootstrap = self.complete(Bootstrap::from_env()?, &workload);
            return Ok(self.counted(
                Mesh::builder()
                    .traces_from_env()
                    .metrics_from_env()
                    .access_logs_from_env()
                    .source(XdsSource::new(bootstrap)),
            ));
        };
        workload.labels.extend(self.labels.iter().cloned());
        if let Some(namespace) = &self.namespace {
            workload.namespace.clone_from(namespace);
        }
        if let Some(account) = &self.service_account {
            workload.service_account.clone_from(account);
        }
        Ok(self.counted(Control::Server(server.clone()).mesh(&workload)))
    }

    /// Metrics are kept where there is a port to read them from, or the environment wants them.
    fn counted(&self, builder: MeshBuilder) -> MeshBuilder {
        if self.admin_addr.is_some() { builder.metrics() } else { builder }
    }

    /// Serves the admin port, where one is asked for, and says where it is.
    ///
    /// # Errors
    /// If it cannot be had, or nobody reads.
    pub async fn serve_admin(&self, mesh: &Mesh, printing: Printing) -> anyhow::Result<()> {
        let Some(asked) = &self.admin_addr else { return Ok(()) };
        if let Some(path) = asked.strip_prefix("unix:") {
            mesh.serve_admin_unix(path).with_context(|| format!("--admin-addr {asked}"))?;
            printing.say(format_args!("admin listening on {asked}"), &json!({ "admin": asked }))?;
            return Ok(());
        }
        let mut found = tokio::net::lookup_host(asked).await.with_context(|| format!("--admin-addr {asked}"))?;
        let address = found.next().with_context(|| format!("--admin-addr {asked}: no address has this name"))?;
        let bound = match self.admin_anywhere {
            true => mesh.serve_admin_anywhere(address)?,
            false if !address.ip().is_loopback() => {
                anyhow::bail!("--admin-addr {asked} is not on the loopback; --admin-anywhere lets it be any address")
            }
            false => mesh.serve_admin(address).with_context(|| format!("--admin-addr {asked}"))?,
        };
        printing.say(format_args!("admin listening on {bound}"), &json!({ "admin": bound }))?;
        Ok(())
    }

    /// A bootstrap with what the options say of its node, and with labels in any case.
    fn complete(&self, mut bootstrap: Bootstrap, workload: &Workload) -> Bootstrap {
        let metadata = &mut bootstrap.node.metadata;
        for (key, said) in [("NAMESPACE", &self.namespace), ("SERVICE_ACCOUNT", &self.service_account)] {
            if let Some(said) = said {
                metadata.insert(key.to_owned(), said.clone().into());
            }
        }
        let own = || Value::Object(text_map(&workload.labels));
        let labels = metadata.entry("LABELS").or_insert_with(own);
        if let Some(labels) = labels.as_object_mut() {
            labels.extend(self.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())));
        }
        bootstrap
    }
}

fn text_map(texts: &BTreeMap<String, String>) -> Map<String, Value> {
    texts.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_the_service_account_of_a_program_that_says_none() {
        let command = <Join as clap::Args>::augment_args(clap::Command::new("any"));
        let option = command.get_arguments().find(|option| option.get_id() == "service_account").unwrap();
        let help = option.get_help().unwrap().to_string();
        assert!(help.contains(&format!("else {:?}", Workload::new("any", "v1").service_account)), "{help}");
    }

    #[test]
    fn options_complete_what_the_bootstrap_says_of_the_node() {
        let echo = Workload::new("echo", "v1");
        let join = Join { labels: vec![("app".into(), "mine".into())], ..Join::default() };
        let completed = join.complete(Bootstrap::new("s:1").node_id("n"), &echo).node;
        assert_eq!(completed.id, "n");
        assert_eq!(completed.metadata["LABELS"], json!({"app": "mine", "version": "v1"}));

        let theirs = Bootstrap::new("s:1").metadata("LABELS", json!({"role": "x"})).metadata("NAMESPACE", "shop");
        let completed = Join::default().complete(theirs.clone(), &echo).node;
        assert_eq!(completed.metadata, *json!({"LABELS": {"role": "x"}, "NAMESPACE": "shop"}).as_object().unwrap());
        let account = Some("web".into());
        let join = Join { namespace: Some("other".into()), service_account: account, ..Join::default() };
        let completed = join.complete(theirs, &echo).node.metadata;
        assert_eq!((&completed["NAMESPACE"], &completed["SERVICE_ACCOUNT"]), (&json!("other"), &json!("web")));
    }

    #[test]
    fn every_process_has_an_id_of_its_own() {
        let workload = Workload::new("reviews", "v2");
        let ids = [(); 2].map(|()| workload.introduce(Bootstrap::new("s:1")).node.id);
        assert!(
            ids[0].starts_with("mesh~127.0.0.1~reviews-v2-") && ids[0].ends_with(".default~default.svc.cluster.local")
        );
        assert_ne!(ids[0], ids[1]);
    }
}
