//! `mesh-gateway` beside an Envoy that is told the same, and beside nginx as a plain reverse proxy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh_benches::Result;
use mesh_benches::clients::Version;
use mesh_benches::process::{Process, family, free_ports};
use tempfile::TempDir;

use crate::Args;
use crate::compare::{Bars, Edge, compare};
use crate::door::{Authority, Door};
use crate::objects::{self, OPEN, SECURED};
use crate::world::{Programs, World, answered, server};

/// What the two gateways are called, as a name and as a label.
pub(crate) const OURS: &str = "mesh-gateway";
pub(crate) const ENVOY: &str = "envoy";
/// Where the service behind them is.
pub(crate) const BEHIND: (&str, u16) = ("server.bench.svc.cluster.local", 8080);

const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// An address of this machine.
pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// TLS in, mutual TLS out, by the same objects of one control plane.
pub(crate) async fn beside_envoy(programs: &Programs, args: &Args) -> Result<bool> {
    println!("\n## mesh-gateway beside Envoy: TLS in, mutual TLS out");
    let authority = Authority::new()?;
    let [our_http, our_https, http, https] = free_ports()?;
    let objects = objects::listens(OURS, our_http, our_https)
        + &objects::listens(ENVOY, http, https)
        + &objects::service("server", BEHIND.1, None)
        + &objects::gateway(true)
        + &objects::route("secured", SECURED, BEHIND, None);
    let secret = objects::secret("secured", &authority.issue(SECURED)?);
    let world = World::start(programs, &[("objects.yaml".into(), objects), ("secret.yaml".into(), secret)])?;
    let _server = server(Some(world.xds))?;
    let (ours, envoy) = (world.mesh_gateway(OURS)?, world.envoy_gateway(ENVOY)?);
    let clients = [authority.client(Version::Http1)?, authority.client(Version::Http2)?];
    let edge = |name, process: &Process, port| {
        let door = |(version, tls)| Door { address: at(port), host: SECURED.to_owned(), version, tls: Some(tls) };
        let doors = VERSIONS.into_iter().zip(clients.clone()).map(door).collect();
        anyhow::Ok(Edge { name, processes: family(process.id())?, doors })
    };
    let bars = Bars { per_cpu: 1.3, p99: Some(1.0), memory: Some(1.0 / 3.0) };
    compare(&edge(OURS, &ours, our_https)?, &edge(ENVOY, &envoy, https)?, &bars, args).await
}

/// Plaintext in and out.
pub(crate) async fn beside_nginx(programs: &Programs, args: &Args) -> Result<bool> {
    println!("\n## mesh-gateway beside nginx: plaintext in and out");
    anyhow::ensure!(
        programs.nginx.is_file(),
        "there is no {}: apt-get install nginx-light, or --nginx PATH",
        programs.nginx.display()
    );
    let (_server, behind) = server(None)?;
    let [our_http, our_https, http1, http2] = free_ports()?;
    let objects = objects::listens(OURS, our_http, our_https)
        + &objects::outside(behind.port())
        + &objects::gateway(false)
        + &objects::route("open", OPEN, (OPEN, 80), None);
    let world = World::start(programs, &[("objects.yaml".into(), objects)])?;
    let ours = world.mesh_gateway(OURS)?;
    let nginx = Nginx::start(&programs.nginx, behind, [http1, http2])?;
    let edge = |name, process: &Process, ports: [u16; 2]| {
        let door = |(version, port)| Door { address: at(port), host: OPEN.to_owned(), version, tls: None };
        anyhow::Ok(Edge {
            name,
            processes: family(process.id())?,
            doors: VERSIONS.into_iter().zip(ports).map(door).collect(),
        })
    };
    // Its workers are there once it answers.
    answered(&Door { address: at(http1), host: OPEN.to_owned(), version: Version::Http1, tls: None }).await?;
    let bars = Bars { per_cpu: 1.0, p99: None, memory: None };
    compare(&edge(OURS, &ours, [our_http; 2])?, &edge("nginx", &nginx.process, [http1, http2])?, &bars, args).await
}

/// One in front of a server, with two workers.
struct Nginx {
    process: Process,
    binary: PathBuf,
    folder: TempDir,
}

impl Nginx {
    /// Connections are kept on both sides. In plaintext it speaks HTTP/2 at a port of its own.
    fn start(binary: &Path, behind: SocketAddr, ports: [u16; 2]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join(NGINX_FILE), nginx_configuration(behind, ports))?;
        let process = Process::start(nginx(binary, folder.path()).stdout(Stdio::null()))?;
        Ok(Nginx { process, binary: binary.to_owned(), folder })
    }
}

impl Drop for Nginx {
    /// A master that is killed leaves its workers behind.
    #[allow(clippy::disallowed_methods, reason = "nothing is measured any more")]
    fn drop(&mut self) {
        _ = nginx(&self.binary, self.folder.path()).args(["-s", "stop"]).stderr(Stdio::null()).status();
        for _ in 0..100 {
            if family(self.process.id()).is_ok_and(|all| all.len() == 1) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const NGINX_FILE: &str = "nginx.conf";

/// How it is called with its configuration in this folder.
fn nginx(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("-p").arg(folder).arg("-c").arg(folder.join(NGINX_FILE));
    command
}

fn nginx_configuration(behind: SocketAddr, [http1, http2]: [u16; 2]) -> String {
    let pass = "location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                proxy_set_header Host $host; }";
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};\n"));
    format!(
        "daemon off;\nworker_processes 2;\npid nginx.pid;\nerror_log stderr error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 1000000000;\nclient_body_buffer_size 64k;\n{}\
         upstream behind {{ server {behind}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {}; {pass} }}\nserver {{ listen {} http2; {pass} }}\n}}\n",
        paths.concat(),
        at(http1),
        at(http2)
    )
}
