//! Requests one after the other, client and server on one thread: what is counted by the program `counts` and
//! held by the allocation test.

use std::net::SocketAddr;
use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use mesh_tower::Mesh;
use tokio::runtime::Runtime;

use crate::clients::{self, HOST, Job, Raw, RawGrpc, Version};
use crate::exchange::bytes;
use crate::servers::{self, ServerKind};
use crate::{Result, grpc};

/// All cases, by what they compare with: the first of each protocol is the floor.
pub const CASES: [&str; 38] = [
    "raw-http1",
    "pooled-http1",
    "mesh-http1",
    "armed-http1",
    "routed-http1",
    "asked-http1",
    "traced-http1",
    "server-http1",
    "traced_server-http1",
    "told-http1",
    "observed-http1",
    "observed_server-http1",
    "open-http1",
    "mutual-http1",
    "raw-http2",
    "pooled-http2",
    "mesh-http2",
    "armed-http2",
    "routed-http2",
    "asked-http2",
    "traced-http2",
    "server-http2",
    "traced_server-http2",
    "told-http2",
    "observed-http2",
    "observed_server-http2",
    "open-http2",
    "mutual-http2",
    "raw-grpc",
    "channel-grpc",
    "mesh-grpc",
    "armed-grpc",
    "traced-grpc",
    "server-grpc",
    "traced_server-grpc",
    "told-grpc",
    "observed-grpc",
    "observed_server-grpc",
];

/// Requests before anything is counted.
const WARM_UP: u64 = 100;

/// Runs a case: some requests to warm up, then `requests` inside `measure`. In `mesh-` cases the client is the
/// mesh's and the server bare; in `armed-` cases that client has an observer, three filters and a retry policy; in
/// `routed-` cases its service has 100 routes with header operations, CORS and query matches, and in `asked-` cases a raw client
/// sends what that sends; in `traced-` cases it records traces, and this is of none; in `observed-` cases it counts requests and has its admin port, too; in `told-` cases a raw client
/// tells the same of a trace; in `mutual-` cases both sides are the mesh's and follow a control plane, by mutual TLS, and in `open-`
/// cases in plaintext; in `server-`, `traced_server-` and `observed_server-` cases the client is raw and the server is the
/// mesh's.
///
/// # Errors
/// If no case is called so, or a request fails.
pub fn run(case: &str, requests: u64, body: usize, measure: impl FnOnce(&mut dyn FnMut())) -> Result {
    // A second thread, as in any real program: allocators and system calls cost a little more with one.
    static SECOND_THREAD: Once = Once::new();
    SECOND_THREAD.call_once(|| drop(std::thread::spawn(std::thread::park)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (who, protocol) = case.split_once('-').unwrap_or((case, ""));
    let mut send = match protocol {
        "http1" => http(&runtime, who, Version::Http1, body)?,
        "http2" => http(&runtime, who, Version::Http2, body)?,
        "grpc" => unary(&runtime, who, body)?,
        _ => anyhow::bail!("no case is called {case}"),
    };
    send(WARM_UP)?;
    let mut result = Ok(());
    measure(&mut || result = send(requests));
    result
}

/// Sends so many requests, one after the other, in one call of the runtime: what it costs to start and end one is not the
/// requests'.
type Send<'r> = Box<dyn FnMut(u64) -> Result + 'r>;

/// Does something so many times.
async fn repeat(times: u64, mut each: impl AsyncFnMut() -> Result) -> Result {
    for _ in 0..times {
        each().await?;
    }
    Ok(())
}

fn server_of(who: &str) -> ServerKind {
    match who {
        "server" => ServerKind::Mesh,
        "traced_server" => ServerKind::Traced,
        "observed_server" => ServerKind::Observed,
        _ => ServerKind::Bare,
    }
}

fn mesh_of(runtime: &Runtime, who: &str, address: SocketAddr) -> Result<Mesh> {
    let _on_it = runtime.enter();
    match who {
        "armed" => clients::armed_mesh([address]),
        "routed" => clients::routed_mesh([address]),
        "traced" => clients::traced_mesh([address]),
        "observed" => clients::observed_mesh([address]),
        _ => clients::mesh([address]),
    }
}

/// Both sides are the mesh's, and follow a control plane on the same thread.
fn followed<'r>(runtime: &'r Runtime, is_open: bool, version: Version, bytes: usize) -> Result<Send<'r>> {
    let (control, mesh) = runtime.block_on(async {
        let control = servers::control(version, is_open).await?;
        servers::following(control.xds_addr()).await?;
        let mesh = servers::identified_mesh(control.xds_addr(), "client")?;
        anyhow::Ok((control, mesh))
    })?;
    let (job, client) = (Job::plain(HOST, bytes)?, mesh.client());
    // The server is an endpoint in a moment.
    runtime.block_on(async {
        let mut patience = 1000;
        while let Err(error) = clients::send_mesh(&client, version, &job).await {
            patience -= 1;
            anyhow::ensure!(patience > 0, error);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    })?;
    Ok(Box::new(move |times| {
        let _control = &control;
        runtime.block_on(repeat(times, async || clients::send_mesh(&client, version, &job).await))
    }))
}

fn http<'r>(runtime: &'r Runtime, who: &str, version: Version, bytes: usize) -> Result<Send<'r>> {
    if let "open" | "mutual" = who {
        return followed(runtime, who == "open", version, bytes);
    }
    let address = runtime.block_on(servers::http(server_of(who)))?;
    Ok(match who {
        "pooled" => {
            let job = Job::plain(&address.to_string(), bytes)?;
            let client = clients::pooled::<Full<Bytes>>(version);
            Box::new(move |times| runtime.block_on(repeat(times, async || clients::send_pooled(&client, &job).await)))
        }
        "mesh" | "armed" | "routed" | "traced" | "observed" => {
            let job = if who == "routed" { Job::routed(HOST, bytes)? } else { Job::plain(HOST, bytes)? };
            let client = mesh_of(runtime, who, address)?.client();
            Box::new(move |times| {
                runtime.block_on(repeat(times, async || clients::send_mesh(&client, version, &job).await))
            })
        }
        "told" | "asked" => {
            let (job, change): (_, fn(&mut http::HeaderMap)) = match who {
                "told" => (Job::plain(HOST, bytes)?, clients::tell),
                _ => (Job::routed(HOST, bytes)?, clients::ask),
            };
            let mut client = runtime.block_on(Raw::connect(address, version))?;
            Box::new(move |times| runtime.block_on(repeat(times, async || client.send_with(&job, change).await)))
        }
        _ => {
            let job = Job::plain(HOST, bytes)?;
            let mut client = runtime.block_on(Raw::connect(address, version))?;
            Box::new(move |times| runtime.block_on(repeat(times, async || client.send(&job).await)))
        }
    })
}

fn unary<'r>(runtime: &'r Runtime, who: &str, count: usize) -> Result<Send<'r>> {
    let body = bytes(count);
    let address = runtime.block_on(servers::grpc(server_of(who)))?;
    Ok(match who {
        "channel" => {
            let endpoint = tonic::transport::Endpoint::new(format!("http://{address}"))?;
            let client = runtime.block_on(endpoint.connect())?;
            Box::new(move |times| {
                runtime
                    .block_on(repeat(times, async || Ok(grpc::call(client.clone(), body.clone()).await.map(drop)?)))
            })
        }
        "mesh" | "armed" | "traced" | "observed" => {
            let client = mesh_tonic::channel(&mesh_of(runtime, who, address)?, HOST);
            Box::new(move |times| {
                runtime
                    .block_on(repeat(times, async || Ok(grpc::call(client.clone(), body.clone()).await.map(drop)?)))
            })
        }
        _ => {
            let change = if who == "told" { clients::tell } else { |_: &mut http::HeaderMap| () };
            let client = runtime.block_on(RawGrpc::connect_with(address, change))?;
            Box::new(move |times| {
                runtime
                    .block_on(repeat(times, async || Ok(grpc::call(client.clone(), body.clone()).await.map(drop)?)))
            })
        }
    })
}
