//! The command line, and who the program is to the mesh.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use http::uri::Authority;
use mesh_tower::{Bootstrap, MeshBuilder};

use crate::start;
use crate::values::{self, label, seconds};

/// Starts a program in the mesh: calls that it makes through a proxy, and calls that it gets on a port in front of it.
///
/// The program is told of the proxy by HTTP_PROXY, HTTPS_PROXY and their like. What it calls in plain HTTP is routed, retried and
/// secured request by request; what it asks for by CONNECT is, connection by connection. Its end is this program's end, with the
/// same exit code; SIGTERM and SIGINT let requests end first.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-sidecar", version, verbatim_doc_comment)]
pub(crate) struct Options {
    /// The port where the program serves, on 127.0.0.1. Others in the mesh call it by --inbound. Without it the program only
    /// calls.
    #[arg(long, value_name = "PORT", env = "MESH_SIDECAR_APP_PORT")]
    pub(crate) app_port: Option<NonZeroU16>,
    /// What is spoken to the program.
    #[arg(long, value_enum, default_value_t, env = "MESH_SIDECAR_APP_PROTOCOL")]
    pub(crate) app_protocol: AppProtocol,
    /// Where others in the mesh call the program: with mutual TLS as the configuration wants it. Port 0 takes a free one, which is
    /// enough for a service with a single port.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:0", env = "MESH_SIDECAR_INBOUND")]
    pub(crate) inbound: SocketAddr,
    /// The port of the proxy for the program's own calls, on 127.0.0.1. Port 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0, env = "MESH_SIDECAR_PROXY_PORT")]
    pub(crate) proxy_port: u16,
    /// A port on 127.0.0.1 that is this service: of HTTP and gRPC, or of any bytes with tcp://; may be repeated.
    #[arg(long, value_name = "PORT=[tcp://]HOST:PORT")]
    pub(crate) listen: Vec<Listen>,
    /// Hosts that the program calls by itself, besides this machine, as clients know them from NO_PROXY.
    #[arg(long, value_name = "HOST,...", env = "NO_PROXY")]
    pub(crate) no_proxy: Option<String>,
    /// The control plane, in plaintext. Without it the environment names the bootstrap, as for every xDS client:
    /// GRPC_XDS_BOOTSTRAP (a file) or GRPC_XDS_BOOTSTRAP_CONFIG (the JSON itself).
    #[arg(long, value_name = "HOST:PORT", env = "MESH_SIDECAR_CONTROL")]
    control: Option<String>,
    /// The name of the workload [default: that of its --group, else sidecar].
    #[arg(long, requires = "control", env = "MESH_SIDECAR_NAME")]
    name: Option<String>,
    /// Its namespace.
    #[arg(long, requires = "control", default_value = "default", env = "MESH_SIDECAR_NAMESPACE")]
    namespace: String,
    /// Its service account: with the namespace, who it is to others.
    #[arg(
        long,
        requires = "control",
        value_name = "NAME",
        default_value = "default",
        env = "MESH_SIDECAR_SERVICE_ACCOUNT"
    )]
    service_account: String,
    /// A label, which services select it by; may be repeated [default: app=NAME].
    #[arg(long = "label", requires = "control", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// The WorkloadGroup of its namespace that it is a member of, which says the rest of it and how it is checked.
    #[arg(long, requires = "control", value_name = "NAME", env = "MESH_SIDECAR_GROUP")]
    group: Option<String>,
    /// Counts requests, and serves metrics, readiness and what is known of the mesh here, on a loopback address unless
    /// --admin-anywhere is given. It opens when the program's port answers.
    #[arg(long, value_name = "IP:PORT", env = "MESH_SIDECAR_ADMIN_ADDR")]
    pub(crate) admin_addr: Option<SocketAddr>,
    /// Lets --admin-addr be any address: whoever reaches it reads what this process knows.
    #[arg(long, requires = "admin_addr", env = "MESH_SIDECAR_ADMIN_ANYWHERE")]
    pub(crate) admin_anywhere: bool,
    /// How long requests may take once the program is told to end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds, env = "MESH_SIDECAR_DRAIN_TIMEOUT")]
    pub(crate) drain_timeout: Duration,
    /// How long the program may take from its signal to its end, in seconds, before it is killed.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds, env = "MESH_SIDECAR_STOP_TIMEOUT")]
    pub(crate) stop_timeout: Duration,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// What a program speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AppProtocol {
    /// HTTP/1.1, and HTTP/2 for gRPC.
    #[default]
    Http,
    /// HTTP/2 for everything, without TLS and without asking (h2c).
    Http2,
    /// Any bytes: policies decide by connection.
    Tcp,
}

/// A port of this machine that is a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) port: u16,
    pub(crate) service: Authority,
    pub(crate) is_tcp: bool,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not PORT=HOST:PORT or PORT=tcp://HOST:PORT");
        let (port, service) = text.split_once('=').ok_or_else(wrong)?;
        let (is_tcp, service) = match service.split_once("://") {
            None => (false, service),
            Some(("http", service)) => (false, service),
            Some(("tcp", service)) => (true, service),
            Some(_) => return Err(wrong()),
        };
        let service: Authority = service.parse().map_err(|_| wrong())?;
        let is_whole = service.port_u16().is_some_and(|port| port > 0) && !service.host().is_empty();
        if !is_whole || service.as_str().contains('@') {
            return Err(wrong());
        }
        Ok(Listen { port: port.parse().map_err(|_| wrong())?, service, is_tcp })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_tcp { "tcp://" } else { "" }, self.service)
    }
}

impl Options {
    /// What the workload is called: members of a group that say nothing else are one workload to those who look at them.
    fn name(&self) -> &str {
        self.name.as_deref().or(self.group.as_deref()).unwrap_or("sidecar")
    }

    /// Who the program is to this control plane. The labels of a member are those of its group, where it says none itself.
    fn bootstrap(&self, server: &str) -> Bootstrap {
        let labels = match (&self.group, self.labels.is_empty()) {
            (Some(_), true) => BTreeMap::new(),
            _ => values::labels(&self.labels, self.name()),
        };
        let Options { namespace, service_account, .. } = self;
        let workload =
            Bootstrap::new(server).workload(self.name(), namespace, service_account, &labels, fastrand::u32(..));
        match &self.group {
            Some(group) => workload.group(group),
            None => workload,
        }
    }

    /// A mesh for the program, to be started; it tells traces, metrics and access logs where the environment says (`OTEL_*`).
    ///
    /// # Errors
    /// If the environment has no usable bootstrap.
    pub(crate) fn mesh(&self) -> Result<MeshBuilder, String> {
        let bootstrap = match &self.control {
            None => Bootstrap::from_env().map_err(|error| error.to_string())?,
            Some(server) => self.bootstrap(server),
        };
        Ok(start::mesh(bootstrap, self.admin_addr.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_port_is_a_service_of_http_or_of_any_bytes() {
        let listen = |text: &str| text.parse::<Listen>();
        let http = Listen { port: 8001, service: Authority::from_static("reviews:9080"), is_tcp: false };
        assert_eq!(listen("8001=reviews:9080"), Ok(http.clone()));
        assert_eq!(listen("8001=http://reviews:9080"), Ok(http.clone()));
        assert_eq!(listen("8001=tcp://reviews:9080"), Ok(Listen { is_tcp: true, ..http }));
        for wrong in [
            "",
            "8001",
            "8001=",
            "8001=reviews",
            "=reviews:9080",
            "x=reviews:9080",
            "99999=a:1",
            "1=https://a:1",
            "1=u@a:1",
            "1=:80",
            "1=a:0",
        ] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_a_valid_one_and_ends_with_the_program() {
        Options::command().debug_assert();
        let options = |line: &str| Options::try_parse_from(line.split(' '));
        let parsed = options("mesh-sidecar --control c:1 --app-port 80 -- python3 app.py --listen x").unwrap();
        assert_eq!(parsed.command, ["python3", "app.py", "--listen", "x"]);
        assert_eq!(values::labels(&parsed.labels, parsed.name()), [("app".to_owned(), "sidecar".to_owned())].into());
        let node = |line: &str| options(line).unwrap().bootstrap("c:1").node.metadata;
        let (own, of_group) =
            (node("mesh-sidecar --control c:1 -- x"), node("mesh-sidecar --control c:1 --group vms -- x"));
        assert_eq!((own["LABELS"]["app"].as_str(), own.get("AUTO_REGISTER_GROUP")), (Some("sidecar"), None));
        assert_eq!((own["WORKLOAD_NAME"].as_str(), of_group["WORKLOAD_NAME"].as_str()), (Some("sidecar"), Some("vms")));
        // A label of its own would go before the one of the group.
        assert_eq!((of_group["LABELS"].get("app"), of_group["AUTO_REGISTER_GROUP"].as_str()), (None, Some("vms")));
        for wrong in [
            "mesh-sidecar",
            "mesh-sidecar --group vms -- x",
            "mesh-sidecar python3",
            "mesh-sidecar --app-port 0 -- x",
            "mesh-sidecar --stop-timeout -1 -- x",
        ] {
            assert!(options(wrong).is_err(), "{wrong}");
        }
    }
}
