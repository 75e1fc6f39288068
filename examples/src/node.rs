//! Who a program is to the control plane, and where the control plane is.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_control::embedded::Embedded;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::{Mesh, MeshBuilder};
use serde_json::{Map, Value};

/// Who a program is: its name, its namespace, and the labels that services select it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name; becomes part of the node's id.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Workload {
    /// A version of an application, labelled `app` and `version`, in the namespace `default`.
    pub fn new(app: &str, version: &str) -> Self {
        let labels = [("app", app), ("version", version)];
        Workload {
            name: format!("{app}-{version}"),
            namespace: "default".to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    /// Presents this workload in a bootstrap: an id that no other process has, and what Istio's agent would say.
    fn introduce(&self, mut bootstrap: Bootstrap) -> Bootstrap {
        let Workload { name, namespace, .. } = self;
        let pod = format!("{name}-{:06x}", fastrand::u32(..1 << 24));
        bootstrap.node.id = format!("mesh~127.0.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local");
        bootstrap
            .metadata("NAME", pod)
            .metadata("NAMESPACE", namespace.clone())
            .metadata("WORKLOAD_NAME", name.clone())
            .metadata("LABELS", text_map(&self.labels))
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
    /// A mesh of this workload, to be started.
    pub fn mesh(&self, workload: &Workload) -> MeshBuilder {
        Mesh::builder().source(match self {
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
    #[arg(long, value_name = "HOST:PORT")]
    pub control: Option<String>,
    /// The namespace of this program [default: the bootstrap's, else "default"].
    #[arg(long)]
    pub namespace: Option<String>,
    /// A label of this program, which services select it by; may be repeated [default: the bootstrap's, else app
    /// and version].
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::text::label)]
    pub labels: Vec<(String, String)>,
}

impl Join {
    /// A mesh for a program of this name and version.
    ///
    /// # Errors
    /// If the environment has no usable bootstrap.
    pub fn mesh(&self, app: &str, version: &str) -> anyhow::Result<MeshBuilder> {
        let Some(server) = &self.control else {
            let bootstrap = self.complete(Bootstrap::from_env()?, app, version);
            return Ok(Mesh::builder().source(XdsSource::new(bootstrap)));
        };
        let mut workload = Workload::new(app, version);
        workload.labels.extend(self.labels.iter().cloned());
        if let Some(namespace) = &self.namespace {
            workload.namespace.clone_from(namespace);
        }
        Ok(Control::Server(server.clone()).mesh(&workload))
    }

    /// A bootstrap with what the options say of its node, and with labels in any case.
    fn complete(&self, mut bootstrap: Bootstrap, app: &str, version: &str) -> Bootstrap {
        let metadata = &mut bootstrap.node.metadata;
        if let Some(namespace) = &self.namespace {
            metadata.insert("NAMESPACE".to_owned(), namespace.clone().into());
        }
        let own = || Value::Object(text_map(&Workload::new(app, version).labels));
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
    use serde_json::json;

    use super::*;

    #[test]
    fn options_complete_what_the_bootstrap_says_of_the_node() {
        let join = Join { labels: vec![("app".into(), "mine".into())], ..Join::default() };
        let completed = join.complete(Bootstrap::new("s:1").node_id("n"), "echo", "v1").node;
        assert_eq!(completed.id, "n");
        assert_eq!(completed.metadata["LABELS"], json!({"app": "mine", "version": "v1"}));

        let theirs = Bootstrap::new("s:1").metadata("LABELS", json!({"role": "x"})).metadata("NAMESPACE", "shop");
        let completed = Join::default().complete(theirs.clone(), "echo", "v1").node;
        assert_eq!(completed.metadata, *json!({"LABELS": {"role": "x"}, "NAMESPACE": "shop"}).as_object().unwrap());
        let join = Join { namespace: Some("other".into()), ..Join::default() };
        assert_eq!(join.complete(theirs, "echo", "v1").node.metadata["NAMESPACE"], "other");
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
