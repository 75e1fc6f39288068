//! The command line, and who the gateway is to the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;
use mesh_tower::{Bootstrap, MeshBuilder};
use serde_json::{Value, json};

use crate::start;
use crate::values::{self, label, seconds};

/// A gateway of the mesh: binds the listeners that the control plane has for it, and sends on what comes to them.
///
/// Which ones there are, with which certificates, and where their requests go is in the objects of the mesh (Gateway, VirtualService),
/// and in force as they change. SIGTERM and SIGINT let requests end first.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-gateway", version, verbatim_doc_comment)]
pub(crate) struct Options {
    /// The control plane, in plaintext. Without it the environment names the bootstrap, as for every xDS client:
    /// GRPC_XDS_BOOTSTRAP (a file) or GRPC_XDS_BOOTSTRAP_CONFIG (the JSON itself).
    #[arg(long, value_name = "HOST:PORT", env = "MESH_GATEWAY_CONTROL")]
    control: Option<String>,
    /// The name of the gateway.
    #[arg(long, requires = "control", default_value = "gateway", env = "MESH_GATEWAY_NAME")]
    name: String,
    /// Its namespace.
    #[arg(long, requires = "control", default_value = "default", env = "MESH_GATEWAY_NAMESPACE")]
    namespace: String,
    /// Its service account: with the namespace, who it is to others.
    #[arg(
        long,
        requires = "control",
        value_name = "NAME",
        default_value = "default",
        env = "MESH_GATEWAY_SERVICE_ACCOUNT"
    )]
    service_account: String,
    /// A label, which objects select it by; may be repeated [default: app=NAME].
    #[arg(long = "label", requires = "control", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// How many proxies in front of it are believed: the client is this one from the end of X-Forwarded-For. Without it the settings of
    /// the mesh say it (gatewayTopology).
    #[arg(long, value_name = "COUNT", env = "MESH_GATEWAY_TRUSTED_PROXIES", value_parser = clap::value_parser!(u16).range(..=1000))]
    trusted_proxies: Option<u16>,
    /// Every connection has to begin with a header of the PROXY protocol, which says whose it is; with `=false` none has one,
    /// whatever the settings of the mesh say (gatewayTopology).
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        env = "MESH_GATEWAY_PROXY_PROTOCOL"
    )]
    proxy_protocol: Option<bool>,
    /// Compresses answers for clients that read it (br, gzip): texts of 1 KiB and more that are not compressed yet. Pages with a secret
    /// beside words of whoever asks can be found out by their length (BREACH).
    #[arg(long, env = "MESH_GATEWAY_COMPRESS")]
    pub(crate) compress: bool,
    /// Counts requests, and serves metrics, readiness and what is known of the mesh here, on a loopback address unless
    /// --admin-anywhere is given. It opens when the control plane has answered.
    #[arg(long, value_name = "IP:PORT", env = "MESH_GATEWAY_ADMIN_ADDR")]
    pub(crate) admin_addr: Option<SocketAddr>,
    /// Lets --admin-addr be any address: whoever reaches it reads what this process knows.
    #[arg(long, requires = "admin_addr", env = "MESH_GATEWAY_ADMIN_ANYWHERE")]
    pub(crate) admin_anywhere: bool,
    /// How long requests may take once the gateway is told to end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds, env = "MESH_GATEWAY_DRAIN_TIMEOUT")]
    pub(crate) drain_timeout: Duration,
}

impl Options {
    /// A mesh for the gateway, to be started; it tells traces, metrics and access logs where the environment says (`OTEL_*`).
    ///
    /// # Errors
    /// If the environment has no usable bootstrap.
    pub(crate) fn mesh(&self) -> Result<MeshBuilder, String> {
        let bootstrap = match &self.control {
            None => Bootstrap::from_env().map_err(|error| error.to_string())?,
            Some(server) => Bootstrap::new(server.as_str()).workload(
                &self.name,
                &self.namespace,
                &self.service_account,
                &values::labels(&self.labels, &self.name),
                fastrand::u32(..),
            ),
        };
        let bootstrap = match self.topology() {
            Some(topology) => bootstrap.metadata("PROXY_CONFIG", json!({"gatewayTopology": topology})),
            None => bootstrap,
        };
        Ok(start::mesh(bootstrap.gateway(), self.admin_addr.is_some()))
    }

    /// What is in front of it, in Istio's words; `None` where the settings of the mesh say it.
    fn topology(&self) -> Option<Value> {
        let mut topology = serde_json::Map::new();
        if let Some(count) = self.trusted_proxies {
            topology.insert("numTrustedProxies".to_owned(), count.into());
        }
        if let Some(is_on) = self.proxy_protocol {
            topology.insert("proxyProtocol".to_owned(), if is_on { json!({}) } else { json!(false) });
        }
        (!topology.is_empty()).then(|| topology.into())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_a_valid_one() {
        Options::command().debug_assert();
        assert!(
            Options::try_parse_from(["mesh-gateway", "--control", "c:1", "--label", "istio=ingressgateway"]).is_ok()
        );
        assert!(Options::try_parse_from(["mesh-gateway", "--label", "a=b"]).is_err());
    }

    #[test]
    fn what_is_in_front_of_it_is_told_where_it_is_said() {
        let told = |options: &[&str]| {
            let options = ["mesh-gateway"].into_iter().chain(options.iter().copied());
            Options::try_parse_from(options).unwrap().topology()
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["--trusted-proxies", "2"]), Some(json!({"numTrustedProxies": 2})));
        for on in ["--proxy-protocol", "--proxy-protocol=true"] {
            assert_eq!(told(&[on]), Some(json!({"proxyProtocol": {}})));
        }
        assert_eq!(told(&["--proxy-protocol=false"]), Some(json!({"proxyProtocol": false})));
    }
}
