//! `mesh-control bootstrap`: the file with which an xDS client finds mesh-control, and tells who it is.
//!
//! The format is gRPC's (gRFC A27), so any gRPC language reads it from `GRPC_XDS_BOOTSTRAP`, and so does our
//! library.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use mesh_core::request::is_this_machine;
use serde_json::{Map, Value, json};

use super::secret::Secret;
use crate::catalog::TLS_MODE;

mod envoy;

/// Prints a bootstrap file.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Prints the configuration of a plain Envoy instead: as the proxy of a workload in any language, so that what it calls, and
    /// what calls it, go through it; or as a gateway, which listens where the Gateways say that select its labels.
    #[arg(long, value_enum, value_name = "TYPE")]
    envoy: Option<EnvoyType>,
    /// How connections come to an Envoy: none has the workload call its addresses on loopback, and binds --ip for those who
    /// call the workload; redirect is for a system that redirects them to ports 15001 and 15006, as Istio's does.
    #[arg(long, value_enum, default_value_t, value_name = "MODE", requires = "envoy")]
    interception: Interception,
    /// The loopback address at which an Envoy that intercepts nothing listens for its workload [default: 127.0.0.1].
    #[arg(long, value_name = "IP", requires = "envoy")]
    outbound_ip: Option<IpAddr>,
    /// The Envoy may not bind ports below 1024: there are no listeners for services at them.
    #[arg(long, requires = "envoy")]
    unprivileged: bool,
    /// Where Envoy serves its own administration, on this machine only.
    #[arg(long, default_value_t = 15000, value_name = "PORT", requires = "envoy")]
    admin_port: u16,
    /// Whose client the file is for. Istio's istiod takes other words for who a client is.
    #[arg(long = "for", value_enum, default_value_t, value_name = "SERVER")]
    dialect: Dialect,
    /// Where xDS is served [default: 127.0.0.1:15010, over TLS 15012; for istiod at istiod.istio-system.svc].
    #[arg(long, alias = "control", value_name = "HOST:PORT")]
    server: Option<String>,
    /// Talks to mesh-control over TLS; its certificate has to be of the authority in this file, and name the host of
    /// --server.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<String>,
    /// The certificate chain that the client shows, for a mesh-control with --client-ca.
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    tls_cert: Option<String>,
    /// The private key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<String>,
    /// The one-time token of `mesh-control token create`, for the workload's first certificate. The file is then a secret.
    /// The environment may have it, where other people's `ps` does not show it.
    #[arg(long, value_name = "TOKEN", value_parser = Secret(token), env = "MESH_CONTROL_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where the workload's key, certificate and roots are, as `mesh-control ca issue` writes them, and the bundles of trust domains
    /// where it wrote some: for gRPC's own programs, which do not ask for a certificate. The workload gets the label `security.istio.io/tlsMode: istio`, which says that it
    /// has one.
    #[arg(long, value_name = "DIR", conflicts_with = "token")]
    certificates: Option<PathBuf>,
    /// The socket of the agent that tells the workload who it is (SPIFFE's Workload API, as SPIRE's agent serves it), such as
    /// unix:///run/spire/agent/api.sock: in place of mesh-control's authority.
    #[arg(long, value_name = "SOCKET", value_parser = socket, conflicts_with_all = ["token", "certificates"])]
    workload_api: Option<String>,
    /// The namespace of the workload: where its short names are looked up and its services are.
    #[arg(long, default_value = "default", value_parser = label)]
    namespace: String,
    /// The name of the workload [default: that of its --group, else workload].
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// A label of the workload: what selectors and `sourceLabels` match. May be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// The service account that the workload runs as.
    #[arg(long)]
    service_account: Option<String>,
    /// The WorkloadGroup that the workload is a member of, in its namespace: with what that says of labels, ports and locality, and
    /// checked by its probe, it is registered while it is connected. Without --name it is called as its group is.
    #[arg(long, value_name = "NAME", value_parser = name)]
    group: Option<String>,
    /// The address at which others reach the workload, if it binds to all of them.
    #[arg(long)]
    ip: Option<IpAddr>,
    /// A port of the workload by the name that services know it by. May be repeated.
    #[arg(long = "port-name", value_name = "NAME=PORT", value_parser = port)]
    ports: Vec<(String, u16)>,
    /// Where the workload runs.
    #[arg(long, value_name = "REGION/ZONE/SUBZONE", default_value = "")]
    locality: String,
    /// Writes to a file instead.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Args {
    /// What the workload is called: members of a group that say nothing else are one workload to those who look at them.
    fn name(&self) -> &str {
        self.name.as_deref().or(self.group.as_deref()).unwrap_or("workload")
    }
}

/// Which proxy an Envoy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum EnvoyType {
    /// One beside a workload.
    Sidecar,
    /// One at the edge of the mesh.
    Gateway,
}

/// How connections come to an Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Interception {
    /// It binds each address itself.
    #[default]
    None,
    /// The system redirects them.
    Redirect,
}

/// The control planes that a bootstrap can be for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Dialect {
    /// This one.
    #[default]
    MeshControl,
    /// Istio's, which tells a proxyless client what it tells gRPC.
    Istiod,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let text = match args.envoy {
        Some(proxy) => envoy::bootstrap(args, proxy)?,
        None => bootstrap(args)?,
    };
    let text = format!("{text:#}\n");
    match &args.out {
        Some(path) if args.token.is_some() => super::files::write(path, text.as_bytes(), 0o600),
        Some(path) => fs::write(path, text).with_context(|| format!("cannot write {}", path.display())),
        None => Ok(super::say(&text)?),
    }
}

fn bootstrap(args: &Args) -> anyhow::Result<Value> {
    let (namespace, name) = (&args.namespace, args.name());
    let ip = args.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut parts = args.locality.splitn(3, '/');
    let [region, zone, sub_zone] = [(); 3].map(|()| parts.next().unwrap_or_default());
    // istiod refuses a node of a type that it does not know, and has no delta protocol for gRPC's resources.
    let (host, node_type, features) = match args.dialect {
        Dialect::MeshControl => ("127.0.0.1", "mesh", vec!["xds_v3", "delta"]),
        Dialect::Istiod => ("istiod.istio-system.svc", "sidecar", vec!["xds_v3"]),
    };
    let port = if args.tls_ca.is_some() { 15012 } else { 15010 };
    let server = args.server.clone().unwrap_or_else(|| format!("{host}:{port}"));
    if args.token.is_some() && args.tls_ca.is_none() && !is_on_this_machine(&server) {
        bail!(
            "a token must not go to {server} in plaintext, where others read it: name the server's authority by --tls-ca"
        );
    }
    let mut bootstrap = json!({
        "xds_servers": [{
            "server_uri": server,
            "channel_creds": [credentials(args)],
            "server_features": features,
        }],
        "node": {
            "id": format!("{node_type}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            "cluster": format!("{name}.{namespace}"),
            "locality": { "region": region, "zone": zone, "sub_zone": sub_zone },
            "metadata": metadata(args),
        },
        "server_listener_resource_name_template": format!("{}%s", crate::serve::SERVER_LISTENER_PREFIX),
    });
    if let Some(token) = &args.token {
        // The name under which listeners and clusters ask for the workload's own certificate.
        bootstrap["certificate_providers"] =
            json!({ "default": { "plugin_name": "mesh_ca", "config": { "token": token } } });
    }
    if let Some(dir) = &args.certificates {
        let file = |name: &str| json!(dir.join(name).display().to_string());
        let mut config = json!({
            "certificate_file": file("cert-chain.pem"),
            "private_key_file": file("key.pem"),
            "ca_certificate_file": file("root-cert.pem"),
            "refresh_interval": "60s",
        });
        if dir.join(super::ca::BUNDLES).exists() {
            // In the words of gRFC A87, and in those of gRPC's C core.
            for key in ["spiffe_trust_bundle_map_file", "spiffe_bundle_map_file"] {
                config[key] = file(super::ca::BUNDLES);
            }
        }
        bootstrap["certificate_providers"] = json!({ "default": { "plugin_name": "file_watcher", "config": config } });
    }
    if let Some(socket) = &args.workload_api {
        bootstrap["certificate_providers"] =
            json!({ "default": { "plugin_name": "spiffe_workload_api", "config": { "socket": socket } } });
    }
    Ok(bootstrap)
}

/// Everybody who reaches an agent is told a key, so that it is no address of a network.
fn socket(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path)) {
        Some(path) if path.starts_with('/') => Ok(text.to_owned()),
        _ => Err("expected a socket of this machine: unix:///path".to_owned()),
    }
}

/// Whether HOST:PORT never leaves this machine.
fn is_on_this_machine(server: &str) -> bool {
    is_this_machine(server.rsplit_once(':').map_or(server, |(host, _)| host))
}

fn credentials(args: &Args) -> Value {
    let Some(authority) = &args.tls_ca else {
        return json!({ "type": "insecure" });
    };
    let mut config = json!({ "ca_certificate_file": authority });
    if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        config["certificate_file"] = json!(certificate);
        config["private_key_file"] = json!(key);
    }
    json!({ "type": "tls", "config": config })
}

fn metadata(args: &Args) -> Value {
    let mut labels: BTreeMap<_, _> = args.labels.iter().cloned().collect();
    if args.certificates.is_some() {
        labels.insert(TLS_MODE.to_owned(), "istio".to_owned());
    }
    let mut metadata = Map::from_iter([
        ("NAMESPACE".to_owned(), json!(args.namespace)),
        ("NAME".to_owned(), json!(args.name())),
        ("WORKLOAD_NAME".to_owned(), json!(args.name())),
        ("LABELS".to_owned(), json!(labels)),
    ]);
    if let Some(account) = &args.service_account {
        metadata.insert("SERVICE_ACCOUNT".to_owned(), json!(account));
    }
    if let Some(group) = &args.group {
        metadata.insert("AUTO_REGISTER_GROUP".to_owned(), json!(group));
    }
    if args.dialect == Dialect::Istiod {
        // Without it istiod answers as it answers an Envoy.
        metadata.insert("GENERATOR".to_owned(), json!("grpc"));
        metadata.insert("CLUSTER_ID".to_owned(), json!("Kubernetes"));
    }
    if let Some(ip) = args.ip {
        metadata.insert("INSTANCE_IPS".to_owned(), json!(ip.to_string()));
    }
    if !args.ports.is_empty() {
        let ports = args.ports.iter();
        let ports = ports.map(|(name, port)| json!({ "name": name, "containerPort": port, "protocol": "TCP" }));
        // A list as text: the form in which Istio's agent writes it.
        metadata.insert("POD_PORTS".to_owned(), json!(json!(ports.collect::<Vec<_>>()).to_string()));
    }
    Value::Object(metadata)
}

fn token(text: &str) -> Result<String, String> {
    match text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        true => Ok(text.to_owned()),
        false => Err("expected a token as `mesh-control token create` prints it: 64 hexadecimal digits".to_owned()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn port(text: &str) -> Result<(String, u16), String> {
    let (name, port) = pair(text).map_err(|_| "expected NAME=PORT".to_owned())?;
    let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    Ok((name, port))
}

fn label(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match (1..=63).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("expected a namespace: lower-case letters, digits and dashes, 63 at most".to_owned()),
    }
}

// `~` separates the parts of a node id.
fn name(text: &str) -> Result<String, String> {
    match !text.is_empty() && !text.contains(['~', '/']) {
        true => Ok(text.to_owned()),
        false => Err("expected a name without `~` and `/`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn from(line: &[&str]) -> Result<Value, clap::Error> {
        Line::try_parse_from([&["bootstrap"], line].concat()).map(|line| bootstrap(&line.args).expect("a bootstrap"))
    }

    #[test]
    fn a_bootstrap_says_where_the_server_is_and_who_the_client_is() {
        let line = [
            "--server",
            "10.0.0.9:15010",
            "--namespace",
            "shop",
            "--name",
            "web-1",
            "--label",
            "app=web",
            "--label",
            "version=v1",
            "--ip",
            "10.0.0.1",
            "--port-name",
            "http=8080",
            "--locality",
            "r/z",
        ];
        let bootstrap = from(&line).expect("a good line");
        let server = &bootstrap["xds_servers"][0];
        assert_eq!(server["server_uri"], "10.0.0.9:15010");
        assert_eq!(server["channel_creds"][0]["type"], "insecure");
        assert_eq!(server["server_features"], json!(["xds_v3", "delta"]));
        let node = &bootstrap["node"];
        assert_eq!(node["id"], "mesh~10.0.0.1~web-1.shop~shop.svc.cluster.local");
        assert_eq!(node["locality"], json!({ "region": "r", "zone": "z", "sub_zone": "" }));
        assert_eq!(node["metadata"]["LABELS"], json!({ "app": "web", "version": "v1" }));
        assert_eq!(node["metadata"]["INSTANCE_IPS"], "10.0.0.1");
        let ports: Value = serde_json::from_str(node["metadata"]["POD_PORTS"].as_str().expect("text")).expect("JSON");
        assert_eq!(ports, json!([{ "name": "http", "containerPort": 8080, "protocol": "TCP" }]));
        assert_eq!(bootstrap["server_listener_resource_name_template"], "xds.istio.io/grpc/lds/inbound/%s");
    }

    #[test]
    fn a_member_of_a_group_says_which() {
        let metadata = |line: &[&str]| from(line).expect("a good line")["node"]["metadata"].clone();
        assert_eq!(metadata(&["--group", "vms"])["AUTO_REGISTER_GROUP"], "vms");
        assert_eq!(metadata(&[]).get("AUTO_REGISTER_GROUP"), None);
        for (line, expected) in
            [(&["--group", "vms"][..], "vms"), (&["--group", "vms", "--name", "vm-1"], "vm-1"), (&[], "workload")]
        {
            let metadata = metadata(line);
            assert_eq!(
                (&metadata["NAME"], &metadata["WORKLOAD_NAME"]),
                (&json!(expected), &json!(expected)),
                "{line:?}"
            );
            let id = from(line).expect("a good line")["node"]["id"].clone();
            assert_eq!(id, format!("mesh~127.0.0.1~{expected}.default~default.svc.cluster.local"));
        }
        assert!(from(&["--group", "shop/vms"]).is_err(), "it is of the workload's namespace");
    }

    #[test]
    fn a_bootstrap_over_tls_names_the_files() {
        let server = |line: &[&str]| from(line).expect("a good line")["xds_servers"][0].clone();
        let plain = server(&[]);
        assert_eq!(
            (&plain["server_uri"], &plain["channel_creds"][0]["type"]),
            (&json!("127.0.0.1:15010"), &json!("insecure"))
        );
        let tls = server(&["--tls-ca", "ca.pem"]);
        assert_eq!(tls["server_uri"], "127.0.0.1:15012");
        assert_eq!(tls["channel_creds"], json!([{ "type": "tls", "config": { "ca_certificate_file": "ca.pem" } }]));
        let mutual = server(&["--tls-ca", "ca.pem", "--tls-cert", "c.pem", "--tls-key", "k.pem"]);
        let config = &mutual["channel_creds"][0]["config"];
        assert_eq!((&config["certificate_file"], &config["private_key_file"]), (&json!("c.pem"), &json!("k.pem")));
    }

    #[test]
    fn a_token_is_handed_to_the_provider_of_certificates_and_never_sent_in_plaintext() {
        let token = "0123456789abcdef".repeat(4);
        let provider = json!({ "plugin_name": "mesh_ca", "config": { "token": token } });
        let far = ["--server", "control.example:15010", "--token", &token];
        for line in [
            &["--token", &token][..],
            &["--server", "localhost:1", "--token", &token],
            &["--server", "[::1]:1", "--token", &token],
            &[&far[..], &["--tls-ca", "ca.pem"]].concat(),
        ] {
            let bootstrap = from(line).expect("a good line");
            assert_eq!(bootstrap["certificate_providers"], json!({ "default": provider }));
            assert!(
                mesh_core::xds::Bootstrap::from_json(&bootstrap.to_string(), "here").is_ok(),
                "our library reads it"
            );
        }
        let line = Line::try_parse_from([&["bootstrap"][..], &far].concat()).expect("a good line");
        assert!(bootstrap(&line.args).expect_err("in plaintext").to_string().contains("--tls-ca"));
        assert!(from(&["--token", "short"]).is_err());
        assert_eq!(from(&[]).expect("a good line").get("certificate_providers"), None);
    }

    #[test]
    fn an_agent_is_a_socket_of_this_machine() {
        let bootstrap = from(&["--workload-api", "unix:///run/agent.sock"]).expect("a good line");
        let config = json!({ "socket": "unix:///run/agent.sock" });
        let provider = json!({ "default": { "plugin_name": "spiffe_workload_api", "config": config } });
        assert_eq!(bootstrap["certificate_providers"], provider);
        for socket in ["127.0.0.1:80", "tcp://127.0.0.1:80", "unix:", "unix:agent.sock", "/run/agent.sock"] {
            assert!(from(&["--workload-api", socket]).is_err(), "{socket}");
        }
        assert!(from(&["--workload-api", "unix:///a", "--certificates", "d"]).is_err());
    }

    #[test]
    fn istiod_is_told_who_a_client_is_in_its_own_words() {
        let bootstrap = from(&["--for", "istiod", "--name", "web-1", "--namespace", "shop"]).expect("a good line");
        assert_eq!(bootstrap["xds_servers"][0]["server_uri"], "istiod.istio-system.svc:15010");
        assert_eq!(bootstrap["xds_servers"][0]["server_features"], json!(["xds_v3"]));
        let node = &bootstrap["node"];
        // Of the types that istiod knows, an IP address, and a pod of this namespace.
        assert_eq!(node["id"], "sidecar~127.0.0.1~web-1.shop~shop.svc.cluster.local");
        assert_eq!(node["metadata"]["GENERATOR"], "grpc");
        let server = from(&["--for", "istiod", "--server", "10.0.0.9:15010"]).expect("a good line");
        assert_eq!(server["xds_servers"][0]["server_uri"], "10.0.0.9:15010");
        assert!(
            mesh_core::xds::Bootstrap::from_json(&bootstrap.to_string(), "here").is_ok(),
            "our own library reads it"
        );
    }

    #[test]
    fn what_would_not_work_is_refused() {
        for line in [
            ["--tls-cert", "c.pem"],
            ["--tls-key", "k.pem"],
            ["--label", "app"],
            ["--port-name", "http=99999"],
            ["--namespace", "Shop"],
            ["--name", "a~b"],
        ] {
            assert!(from(&line).is_err(), "{line:?}");
        }
    }
}
