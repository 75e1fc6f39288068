//! The bootstrap of a workload in a Pod, which needs no file: what Kubernetes' downward API says of the Pod, a projected token,
//! and the roots, all where Istio's workloads have them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Bootstrap, CertificateProvider, ChannelCredentials, ClientTlsFiles};

/// Where the control plane is, `HOST:PORT`: that a workload is meant to read the rest, too.
pub(super) const SERVER: &str = "MESH_XDS_SERVER";
/// The labels of the Pod, a `KEY="VALUE"` in each line (a volume of the downward API).
const LABELS: &str = "/etc/istio/pod/labels";
/// A token for the audience `istio-ca`, which Kubernetes replaces in time (a projected volume).
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// Who vouches for the control plane.
const ROOTS: &str = "/var/run/secrets/istio/root-cert.pem";

/// A bootstrap from these variables and files, or what of them is wrong: the place, and why.
pub(super) fn bootstrap(
    server: &str,
    variable: impl Fn(&str) -> Option<String>,
    read: impl Fn(&Path) -> io::Result<String>,
) -> Result<Bootstrap, (String, String)> {
    let needed = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| (name.to_owned(), format!("not set, and {SERVER} is: a field of the Pod's downward API")))
    };
    let file = |path: &str| read(Path::new(path)).map_err(|error| (path.to_owned(), error.to_string()));
    let (name, namespace, ip) = (needed("POD_NAME")?, needed("POD_NAMESPACE")?, needed("POD_IP")?);
    let account = needed("SERVICE_ACCOUNT")?;
    // By its labels is told which policies guard it: without them it would be somebody else.
    let labels = labels(&file(LABELS)?).map_err(|why| (LABELS.to_owned(), why))?;
    // They are read again whenever they are needed. That they are missing shows now.
    file(TOKEN)?;
    file(ROOTS)?;

    let workload = workload(&name, &labels);
    let mut bootstrap = Bootstrap::new(server);
    for server in &mut bootstrap.servers {
        server.credentials = ChannelCredentials::Tls(ClientTlsFiles::new(ROOTS));
    }
    let place = |key: &str| labels.get(&format!("topology.kubernetes.io/{key}")).cloned().unwrap_or_default();
    (bootstrap.node.locality.region, bootstrap.node.locality.zone) = (place("region").into(), place("zone").into());
    bootstrap.node.id = format!("mesh~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local");
    bootstrap.node.cluster = format!("{workload}.{namespace}");
    bootstrap.node.metadata = Map::from_iter([
        ("NAMESPACE".to_owned(), json!(namespace)),
        ("NAME".to_owned(), json!(name)),
        ("WORKLOAD_NAME".to_owned(), json!(workload)),
        ("SERVICE_ACCOUNT".to_owned(), json!(account)),
        ("INSTANCE_IPS".to_owned(), json!(ip)),
        ("LABELS".to_owned(), json!(labels)),
    ]);
    let provider = CertificateProvider { plugin: "mesh_ca".to_owned(), config: json!({ "token_file": TOKEN }) };
    bootstrap.certificate_providers.insert("default".to_owned(), provider);
    Ok(bootstrap)
}

/// Labels as the downward API writes them.
fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let lines = text.lines().filter(|line| !line.is_empty());
    let label = |line: &str| {
        let (key, value) = line.split_once('=')?;
        // Go's quotes; of what they escape, a label has nothing.
        let Ok(Value::String(value)) = serde_json::from_str(value) else { return None };
        Some((key.to_owned(), value))
    };
    lines.map(|line| label(line).ok_or_else(|| format!("{line:?} is not KEY=\"VALUE\""))).collect()
}

/// What made the Pod: `web` of `web-5d7c-x2x4z`, where its labels say which part a Deployment added.
fn workload(name: &str, labels: &BTreeMap<String, String>) -> String {
    let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}-"));
    let deployment = hash.and_then(|hash| name.rsplit_once(&*hash)).map(|(deployment, _)| deployment);
    deployment.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS_FILE: &str = "app=\"web\"\npod-template-hash=\"5d7c\"\ntopology.kubernetes.io/zone=\"z\"\n";

    fn variable(name: &str) -> Option<String> {
        let value = match name {
            "POD_NAME" => "web-v2-5d7c-x2x4z",
            "POD_NAMESPACE" => "shop",
            "POD_IP" => "10.0.0.7",
            "SERVICE_ACCOUNT" => "seller",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn file(path: &Path) -> io::Result<String> {
        Ok(if path == Path::new(LABELS) { LABELS_FILE.to_owned() } else { "x".to_owned() })
    }

    #[test]
    fn a_pod_is_who_kubernetes_says() {
        let bootstrap = bootstrap("mesh-control.mesh-system.svc:15012", variable, file).expect("a bootstrap");
        let node = &bootstrap.node;
        assert_eq!(node.id, "mesh~10.0.0.7~web-v2-5d7c-x2x4z.shop~shop.svc.cluster.local");
        assert_eq!((&*node.cluster, &*node.locality.zone), ("web-v2.shop", "z"));
        assert_eq!(node.metadata["LABELS"]["app"], "web");
        assert_eq!(node.metadata["SERVICE_ACCOUNT"], "seller");
        let ChannelCredentials::Tls(files) = &bootstrap.servers[0].credentials else { panic!("in plaintext") };
        assert_eq!(files.ca_certificate, Path::new(ROOTS));
        assert_eq!(bootstrap.certificate_providers["default"].config, json!({ "token_file": TOKEN }));
    }

    #[test]
    fn what_is_missing_is_named() {
        for missing in ["POD_NAME", "POD_NAMESPACE", "POD_IP", "SERVICE_ACCOUNT"] {
            let variable = |name: &str| variable(name).filter(|_| name != missing);
            assert_eq!(bootstrap("s:1", variable, file).expect_err(missing).0, missing);
        }
        for missing in [LABELS, TOKEN, ROOTS] {
            let file = |path: &Path| match path == Path::new(missing) {
                true => Err(io::Error::from(io::ErrorKind::NotFound)),
                false => file(path),
            };
            assert_eq!(bootstrap("s:1", variable, file).expect_err(missing).0, missing);
        }
        let wrong = |path: &Path| if path == Path::new(LABELS) { Ok("app=web".to_owned()) } else { file(path) };
        assert!(bootstrap("s:1", variable, wrong).expect_err("no labels").1.contains("KEY="));
    }
}
