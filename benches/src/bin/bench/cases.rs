//! Who is compared in which case.

use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use mesh_benches::beside::Beside;
use mesh_benches::clients::{self, HOST, Job, Payload, Pooled, Raw, RawCaller, RawGrpc, Version};
use mesh_benches::envoy::{Policy, Sidecar};
use mesh_benches::exchange::{Frames, bytes};
use mesh_benches::load::{Caller, Crew, Figures};
use mesh_benches::process::Process;
use mesh_benches::servers::{Served, identified_mesh};
use mesh_benches::{Result, grpc};
use mesh_control::embedded::Embedded;
use mesh_tower::{Client, Mesh};
use regex::Regex;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::{Channel, Endpoint};

/// How many callers there are at a time.
const CALLERS: [usize; 2] = [1, 16];
/// Sizes of plain bodies, in bytes.
const BODIES: [(usize, &str); 2] = [(256, "256B"), (64 << 10, "64KiB")];

/// One contender in one case, with what was measured of it.
pub(crate) struct Contender {
    /// Protocol, callers and body: `http1/c16/256B`.
    pub(crate) case: String,
    /// Who it is.
    pub(crate) name: &'static str,
    pub(crate) crew: Box<dyn Crew>,
    /// The processes of the client's side.
    pub(crate) client: Vec<u32>,
    /// The processes of the server's side.
    pub(crate) server: Vec<u32>,
    pub(crate) rounds: Vec<Figures>,
}

/// A server in a process of its own.
pub(crate) struct Side {
    pub(crate) process: Process,
    pub(crate) served: Served,
}

/// All servers.
pub(crate) struct Sides {
    pub(crate) bare: Side,
    pub(crate) mesh: Side,
    /// The same, with all of its telemetry on.
    pub(crate) observed: Side,
    /// By mutual TLS, and the control plane that it follows.
    pub(crate) mutual: (Side, Embedded),
    /// The same in plaintext.
    pub(crate) open: (Side, Embedded),
    /// The client's and the server's, in front of the bare server.
    pub(crate) envoy: Option<(Sidecar, Sidecar)>,
    /// Another client's, with the policy of the mesh that is `routed`.
    pub(crate) routed: Option<Sidecar>,
    /// The client's and the server's of ours, in the place of Envoys: in plaintext as these, and by mutual TLS.
    pub(crate) beside: Option<(Beside, Beside)>,
    /// What tonic-xds asks.
    #[cfg(feature = "tonic-xds")]
    pub(crate) control: Embedded,
}

impl Sides {
    pub(crate) async fn with_sidecars(self, binary: &Path) -> Result<Self> {
        let near_server = Sidecar::start(binary, self.bare.served, Policy::None).await?;
        let near_client = Sidecar::start(binary, near_server.listens(), Policy::None).await?;
        let routed = Sidecar::start(binary, near_server.listens(), Policy::Routed).await?;
        Ok(Sides { envoy: Some((near_client, near_server)), routed: Some(routed), ..self })
    }
}

impl Sides {
    /// The control planes of these have no other server.
    pub(crate) fn with_beside(self, binary: &Path, open: &Embedded, mutual: &Embedded) -> Result<Self> {
        let around = |control: &Embedded| Beside::start(binary, control.xds_addr(), self.bare.served.http);
        let beside = (around(open)?, around(mutual)?);
        Ok(Sides { beside: Some(beside), ..self })
    }
}

/// Those that are wanted, each case's together.
pub(crate) async fn all(sides: &Sides, only: &Regex) -> Result<Vec<Contender>> {
    let mut list = List { only, contenders: Vec::new() };
    let meshes = Meshes {
        to_bare: clients::mesh([sides.bare.served.http])?,
        to_mesh: clients::mesh([sides.mesh.served.http])?,
        mutual: identified_mesh(sides.mutual.1.xds_addr(), "client")?,
        open: identified_mesh(sides.open.1.xds_addr(), "client")?,
        routed: clients::routed_mesh([sides.bare.served.http])?,
        grpc_to_bare: clients::mesh([sides.bare.served.grpc])?,
        grpc_to_mesh: clients::mesh([sides.mesh.served.grpc])?,
        observed: clients::observed_mesh([sides.bare.served.http])?,
        grpc_observed: clients::observed_mesh([sides.bare.served.grpc])?,
    };
    for (version, protocol) in [(Version::Http1, "http1"), (Version::Http2, "http2")] {
        for (size, body) in BODIES {
            for callers in CALLERS {
                let case = Case { name: format!("{protocol}/c{callers}/{body}"), callers };
                http(&mut list, sides, &meshes, &case, version, |host| Job::<Full<Bytes>>::plain(host, size)).await?;
            }
        }
        for callers in CALLERS {
            let case = Case { name: format!("{protocol}/c{callers}/routed"), callers };
            routed(&mut list, sides, &meshes, &case, version)?;
        }
        telemetry(&mut list, sides, &meshes, &Case::telemetry(protocol), version).await?;
        for callers in CALLERS {
            let case = Case { name: format!("{protocol}/c{callers}/stream"), callers };
            http(&mut list, sides, &meshes, &case, version, Job::<Frames>::streamed).await?;
        }
    }
    for (size, body) in BODIES {
        for callers in CALLERS {
            let case = Case { name: format!("grpc/c{callers}/{body}"), callers };
            unary(&mut list, sides, &meshes, &case, bytes(size)).await?;
        }
    }
    grpc_telemetry(&mut list, sides, &meshes, &Case::telemetry("grpc")).await?;
    Ok(list.contenders)
}

struct Meshes {
    to_bare: Mesh,
    to_mesh: Mesh,
    routed: Mesh,
    mutual: Mesh,
    open: Mesh,
    grpc_to_bare: Mesh,
    grpc_to_mesh: Mesh,
    observed: Mesh,
    grpc_observed: Mesh,
}

struct Case {
    name: String,
    callers: usize,
}

impl Case {
    fn telemetry(protocol: &str) -> Self {
        let [_, callers] = CALLERS;
        Case { name: format!("{protocol}/c{callers}/telemetry"), callers }
    }
}

struct List<'a> {
    only: &'a Regex,
    contenders: Vec<Contender>,
}

impl List<'_> {
    fn wants(&self, case: &Case, name: &str) -> bool {
        self.only.is_match(&format!("{} {name}", case.name))
    }

    fn add<C: Caller>(&mut self, case: &Case, name: &'static str, crew: Vec<C>, client: Option<u32>, server: &[u32]) {
        self.contenders.push(Contender {
            case: case.name.clone(),
            name,
            crew: Box::new(crew),
            client: client.into_iter().chain([std::process::id()]).collect(),
            server: server.to_vec(),
            rounds: Vec::new(),
        });
    }
}

/// Clones of one caller.
fn crew<C: Clone>(case: &Case, caller: C) -> Vec<C> {
    vec![caller; case.callers]
}

async fn http<B: Payload>(
    list: &mut List<'_>,
    sides: &Sides,
    meshes: &Meshes,
    case: &Case,
    version: Version,
    job: impl Fn(&str) -> Result<Job<B>>,
) -> Result {
    let bare = sides.bare.served.http;
    let bare_process = [sides.bare.process.id()];
    if list.wants(case, "raw") {
        let job = job(HOST)?;
        let raw = Raw::several(bare, version, case.callers).await?;
        let crew = raw.into_iter().map(|sender| RawCaller { sender, job: job.clone() }).collect();
        list.add::<RawCaller<B>>(case, "raw", crew, None, &bare_process);
    }
    if list.wants(case, "pooled") {
        let caller = PooledCaller { client: clients::pooled(version), job: job(&bare.to_string())? };
        list.add(case, "pooled", crew(case, caller), None, &bare_process);
    }
    if list.wants(case, "mesh") {
        let caller = MeshCaller { client: meshes.to_bare.client(), version, job: job(HOST)? };
        list.add(case, "mesh", crew(case, caller), None, &bare_process);
    }
    if list.wants(case, "mesh both") {
        let caller = MeshCaller { client: meshes.to_mesh.client(), version, job: job(HOST)? };
        list.add(case, "mesh both", crew(case, caller), None, &[sides.mesh.process.id()]);
    }
    // Their services speak HTTP/1.1.
    for (name, mesh, side) in
        [("mesh both open", &meshes.open, &sides.open), ("mesh both mTLS", &meshes.mutual, &sides.mutual)]
    {
        if version == Version::Http1 && list.wants(case, name) {
            let caller = MeshCaller { client: mesh.client(), version, job: job(HOST)? };
            list.add(case, name, crew(case, caller), None, &[side.0.process.id()]);
        }
    }
    if let Some((near_client, near_server)) = &sides.envoy
        && list.wants(case, "sidecars")
    {
        let job = job(&near_client.listens().http.to_string())?;
        let caller = PooledCaller { client: clients::pooled(version), job };
        let server = [near_server.id(), bare_process[0]];
        list.add(case, "sidecars", crew(case, caller), Some(near_client.id()), &server);
    }
    if let Some((open, mutual)) = &sides.beside {
        for (name, pair) in [("mesh-sidecars", open), ("mesh-sidecars mTLS", mutual)] {
            // Their service speaks HTTP/1.1.
            if version == Version::Http1 && list.wants(case, name) {
                let caller = PooledCaller { client: clients::pooled(version), job: job(&pair.listens().to_string())? };
                let (near_client, near_server) = pair.ids();
                list.add(case, name, crew(case, caller), Some(near_client), &[near_server, bare_process[0]]);
            }
        }
    }
    Ok(())
}

/// A realistic policy on every route, in the mesh and in the client's sidecar; the pooled client has none.
fn routed(list: &mut List<'_>, sides: &Sides, meshes: &Meshes, case: &Case, version: Version) -> Result {
    let (bare, size) = (sides.bare.served.http, BODIES[0].0);
    let bare_process = [sides.bare.process.id()];
    if list.wants(case, "pooled") {
        let caller = PooledCaller { client: clients::pooled(version), job: Job::routed(&bare.to_string(), size)? };
        list.add(case, "pooled", crew(case, caller), None, &bare_process);
    }
    if list.wants(case, "mesh") {
        let caller = MeshCaller { client: meshes.routed.client(), version, job: Job::routed(HOST, size)? };
        list.add(case, "mesh", crew(case, caller), None, &bare_process);
    }
    if let (Some(near_client), Some((_, near_server))) = (&sides.routed, &sides.envoy)
        && list.wants(case, "sidecars")
    {
        let job = Job::routed(&near_client.listens().http.to_string(), size)?;
        let caller = PooledCaller { client: clients::pooled(version), job };
        let server = [near_server.id(), bare_process[0]];
        list.add(case, "sidecars", crew(case, caller), Some(near_client.id()), &server);
    }
    Ok(())
}

/// What telemetry costs each side: the mesh on one of them, with telemetry and without, and a bare one on the other.
async fn telemetry(list: &mut List<'_>, sides: &Sides, meshes: &Meshes, case: &Case, version: Version) -> Result {
    let job = Job::<Full<Bytes>>::plain(HOST, BODIES[0].0)?;
    for (name, mesh) in [("mesh", &meshes.to_bare), ("observed", &meshes.observed)] {
        if list.wants(case, name) {
            let caller = MeshCaller { client: mesh.client(), version, job: job.clone() };
            list.add(case, name, crew(case, caller), None, &[sides.bare.process.id()]);
        }
    }
    for (name, side) in [("server", &sides.mesh), ("observed server", &sides.observed)] {
        if list.wants(case, name) {
            let raw = Raw::several(side.served.http, version, case.callers).await?;
            let crew = raw.into_iter().map(|sender| RawCaller { sender, job: job.clone() }).collect();
            list.add::<RawCaller<Full<Bytes>>>(case, name, crew, None, &[side.process.id()]);
        }
    }
    Ok(())
}

/// The same of unary calls.
async fn grpc_telemetry(list: &mut List<'_>, sides: &Sides, meshes: &Meshes, case: &Case) -> Result {
    let body = bytes(BODIES[0].0);
    for (name, mesh) in [("mesh", &meshes.grpc_to_bare), ("observed", &meshes.grpc_observed)] {
        if list.wants(case, name) {
            let caller = GrpcCaller { service: mesh_tonic::channel(mesh, HOST), body: body.clone() };
            list.add(case, name, crew(case, caller), None, &[sides.bare.process.id()]);
        }
    }
    for (name, side) in [("server", &sides.mesh), ("observed server", &sides.observed)] {
        if list.wants(case, name) {
            let caller = GrpcCaller { service: RawGrpc::connect(side.served.grpc).await?, body: body.clone() };
            list.add(case, name, crew(case, caller), None, &[side.process.id()]);
        }
    }
    Ok(())
}

async fn unary(list: &mut List<'_>, sides: &Sides, meshes: &Meshes, case: &Case, body: Bytes) -> Result {
    let bare = sides.bare.served.grpc;
    let bare_process = [sides.bare.process.id()];
    let endpoint = |address| Endpoint::new(format!("http://{address}"));
    if list.wants(case, "raw") {
        let caller = GrpcCaller { service: RawGrpc::connect(bare).await?, body: body.clone() };
        list.add(case, "raw", crew(case, caller), None, &bare_process);
    }
    if list.wants(case, "channel") {
        let caller = GrpcCaller { service: endpoint(bare)?.connect().await?, body: body.clone() };
        list.add(case, "channel", crew(case, caller), None, &bare_process);
    }
    if list.wants(case, "balance_list") {
        let service = Channel::balance_list([endpoint(bare)?].into_iter());
        list.add(case, "balance_list", crew(case, GrpcCaller { service, body: body.clone() }), None, &bare_process);
    }
    #[cfg(feature = "tonic-xds")]
    if list.wants(case, "tonic-xds") {
        let service = crate::xds::channel(&sides.control).await?;
        list.add(case, "tonic-xds", crew(case, GrpcCaller { service, body: body.clone() }), None, &bare_process);
    }
    if list.wants(case, "mesh") {
        let caller = GrpcCaller { service: mesh_tonic::channel(&meshes.grpc_to_bare, HOST), body: body.clone() };
        list.add(case, "mesh", crew(case, caller), None, &bare_process);
    }
    if list.wants(case, "mesh both") {
        let caller = GrpcCaller { service: mesh_tonic::channel(&meshes.grpc_to_mesh, HOST), body: body.clone() };
        list.add(case, "mesh both", crew(case, caller), None, &[sides.mesh.process.id()]);
    }
    if let Some((near_client, near_server)) = &sides.envoy
        && list.wants(case, "sidecars")
    {
        let service = endpoint(near_client.listens().grpc)?.connect().await?;
        let server = [near_server.id(), bare_process[0]];
        let crew = crew(case, GrpcCaller { service, body });
        list.add(case, "sidecars", crew, Some(near_client.id()), &server);
    }
    Ok(())
}

#[derive(Clone)]
struct PooledCaller<B> {
    client: Pooled<B>,
    job: Job<B>,
}

impl<B: Payload> Caller for PooledCaller<B> {
    async fn call(&mut self) -> Result {
        clients::send_pooled(&self.client, &self.job).await
    }
}

#[derive(Clone)]
struct MeshCaller<B> {
    client: Client,
    version: Version,
    job: Job<B>,
}

impl<B: Payload> Caller for MeshCaller<B> {
    async fn call(&mut self) -> Result {
        clients::send_mesh(&self.client, self.version, &self.job).await
    }
}

#[derive(Clone)]
struct GrpcCaller<S> {
    service: S,
    body: Bytes,
}

impl<S> Caller for GrpcCaller<S>
where
    S: GrpcService<Body> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    async fn call(&mut self) -> Result {
        Ok(grpc::call(self.service.clone(), self.body.clone()).await.map(drop)?)
    }
}
