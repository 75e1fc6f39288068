//! A pair of `mesh-sidecar`, beside the client and beside the server, and a pair of Envoys in their place: mutual TLS between the two.

use std::net::SocketAddr;

use mesh_benches::Result;
use mesh_benches::clients::{HOST, Version};
use mesh_benches::process::free_ports;

use crate::Args;
use crate::compare::{Bars, Edge, compare};
use crate::door::Door;
use crate::objects;
use crate::world::{Programs, World, server};

/// The service of the Envoys. That of ours is [`HOST`].
const ENVOYED: &str = "envoyed";
/// Where the Envoy of the server is called, where it would be for its own calls, and where that of the client is: machines of their own.
const SERVER: [&str; 2] = ["127.0.0.2", "127.0.1.2"];
const CLIENT: [&str; 2] = ["127.0.0.3", "127.0.1.3"];

pub(crate) async fn run(programs: &Programs, args: &Args) -> Result<bool> {
    println!("\n## A pair of mesh-sidecar beside a pair of Envoys: mutual TLS between them");
    let (_server, behind) = server(None)?;
    let [port] = free_ports()?;
    let (_, our_port) = HOST.split_once(':').unwrap_or((HOST, "8080"));
    let objects = objects::service("server", our_port.parse()?, None) + &objects::service(ENVOYED, port, Some("http"));
    let world = World::start(programs, &[("objects.yaml".into(), objects)])?;
    let pair = world.mesh_sidecars(behind)?;
    let near_server = world.envoy_sidecar(ENVOYED, SERVER[0], SERVER[1], Some(behind.port()))?;
    let near_client = world.envoy_sidecar("caller", CLIENT[0], CLIENT[1], None)?;
    let ours = Edge {
        name: "mesh-sidecars",
        processes: <[u32; 2]>::from(pair.ids()).into(),
        doors: vec![door(pair.listens(), pair.listens().to_string())],
    };
    let theirs = Edge {
        name: "envoys",
        processes: [near_client.id(), near_server.id()].into(),
        doors: vec![door(format!("{}:{port}", CLIENT[1]).parse()?, format!("{ENVOYED}.bench"))],
    };
    let bars = Bars { per_cpu: 2.0, p99: None, memory: Some(0.25) };
    compare(&ours, &theirs, &bars, args).await
}

/// The client speaks HTTP/1.1 with its sidecar, and so do the sidecars with each other and with the server.
fn door(address: SocketAddr, host: String) -> Door {
    Door { address, host, version: Version::Http1, tls: None }
}
