//! tonic-xds: gRPC's own xDS client for Rust, configured by a mesh-control in this process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use mesh_benches::clients::HOST;
use mesh_benches::{Result, grpc};
use mesh_control::embedded::{Config, Embedded, Options};
use tonic_xds::{BootstrapConfig, XdsChannelBuilder, XdsChannelConfig, XdsChannelGrpc, XdsUri};

/// A control plane that knows the server under [`HOST`].
pub(crate) async fn control(server: SocketAddr) -> Result<Embedded> {
    let (host, port) = HOST.split_once(':').unwrap_or((HOST, "80"));
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: server, namespace: bench}}\n\
         spec:\n  hosts: [{host}]\n  ports: [{{name: grpc, number: {port}, protocol: GRPC}}]\n  \
         resolution: STATIC\n  location: MESH_INTERNAL\n  \
         endpoints: [{{address: {}, ports: {{grpc: {}}}}}]\n",
        server.ip(),
        server.port()
    );
    Ok(Embedded::start(Config::yaml(yaml), Options::default()).await?)
}

/// A channel that asks the control plane where [`HOST`] is, once it knows: before, its calls fail.
pub(crate) async fn channel(control: &Embedded) -> Result<XdsChannelGrpc> {
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": format!("http://{}", control.xds_addr()),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": "mesh~127.0.0.1~web.bench~bench.svc.cluster.local" },
    });
    let bootstrap = BootstrapConfig::from_json(&bootstrap.to_string())?;
    let config = XdsChannelConfig::new(XdsUri::parse(&format!("xds:///{HOST}"))?).with_bootstrap(bootstrap);
    let channel = XdsChannelBuilder::new(config).build_grpc_channel()?;
    let ready = async {
        while grpc::call(channel.clone(), Bytes::new()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.context("tonic-xds has no configuration")?;
    Ok(channel)
}
