//! `mesh-sidecar -- COMMAND`: a program that knows nothing of a mesh, as a part of it. See docs/sidecar.md.
//!
//! Its own process has both ends of the mesh: a proxy for the program's calls (`outbound.rs`), and a server in front of the program
//! (`inbound.rs`); `forward.rs` is what both do with messages. `program.rs` is the program's life, and this file the order of things:
//! proxy, program, port in front of it, and on the way out the port, the requests, the program, the proxy.

#![warn(clippy::unwrap_used)]

mod carry;
#[path = "../shared/forward.rs"]
mod forward;
mod inbound;
mod options;
mod outbound;
mod program;
#[path = "../shared/start.rs"]
mod start;
#[path = "../shared/values.rs"]
mod values;

use std::io;
use std::pin::pin;
use std::process::ExitCode;

use clap::Parser;
use mesh_tower::core::fixed::Fixed;
use mesh_tower::{Mesh, server};
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::forward::Tunnels;
use crate::inbound::ToProgram;
use crate::options::{AppProtocol, Options};
use crate::outbound::Outbound;
use crate::program::Program;

/// What nobody has to ask the mesh for.
const DIRECT: &str = "localhost,127.0.0.1,::1";
/// The name of the program in the configuration that knows nothing else.
const PROGRAM: &str = "program:80";
/// What is told to the program at once. SIGTERM and SIGINT let requests end first.
const PASSED_ON: [Signal; 5] = [Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];

fn main() -> ExitCode {
    if let Some(code) = program::become_program(std::env::args_os().skip(1)) {
        return code.into();
    }
    let options = Options::parse();
    start::program("mesh-sidecar", "warn,mesh_sidecar=info", run(&options))
}

/// From the program's beginning to its end, whose exit code this is.
async fn run(options: &Options) -> Result<u8, String> {
    // Before there is anything that a signal could end.
    let mut signals = signals().map_err(|error| format!("signals: {error}"))?;
    let mesh = options.mesh()?.start().map_err(|error| error.to_string())?;
    // Who calls the program takes no room of what it calls.
    let (outgoing, incoming) = (Tunnels::default(), Tunnels::default());
    let port = options.app_port.map(|port| inbound::program_at(port.get()));
    let local =
        Mesh::builder().source(Fixed::new().service(PROGRAM, port)).start().map_err(|error| error.to_string())?;
    let outbound = Outbound::bind(&mesh, &local, options.proxy_port, &options.listen, &outgoing).await?;
    tracing::info!("proxy at {}", outbound.proxy);
    let program = Program::start(&options.command, &variables(options, &outbound))
        .map_err(|error| format!("no program: {error}"))?;

    let mut front = JoinSet::new();
    if options.app_port.is_some() {
        front.spawn(serve(options.clone(), mesh.clone(), local.clone(), incoming));
    } else {
        start::serve_admin(options.admin_addr, options.admin_anywhere, &mesh)?;
        tracing::info!("ready");
    }
    let code = live(options, &mesh, program, &mut signals, &mut front).await;
    mesh.flush_telemetry().await;
    mesh.flush_access_logs();
    code
}

/// The program's life: whatever happens first.
async fn live(
    options: &Options,
    mesh: &Mesh,
    mut program: Program,
    signals: &mut mpsc::Receiver<Signal>,
    front: &mut JoinSet<Result<(), String>>,
) -> Result<u8, String> {
    let mut told = None;
    let mut kill = pin!(tokio::time::sleep(options.stop_timeout));
    let mut is_stopping = false;
    loop {
        // Nobody is in front of the program any more, and it was told to end.
        if let Some(signal) = told.filter(|_| front.is_empty() && !is_stopping) {
            tracing::info!("the program is told to end");
            program.signal(signal);
            is_stopping = true;
            kill.as_mut().reset(tokio::time::Instant::now() + options.stop_timeout);
        }
        tokio::select! {
            ended = program.ended() => return ended.map_err(|error| format!("the program: {error}")),
            Some(signal) = signals.recv() => match signal {
                Signal::TERM | Signal::INT if told.is_none() => {
                    tracing::info!("told to end: draining");
                    told = Some(signal);
                    if !front.is_empty() {
                        let drain = mesh.drain().clone();
                        // Who is in front of the program ends by it.
                        front.spawn(async move {
                            drain.begin().await;
                            Ok(())
                        });
                    }
                }
                other => program.signal(other),
            },
            Some(served) = front.join_next() => match served.map_err(|error| error.to_string()).flatten() {
                Ok(()) => {}
                // What was to be done is not: the program ends with this.
                Err(why) if told.is_none() => return Err(why),
                Err(why) => tracing::warn!("{why}"),
            },
            () = &mut kill, if is_stopping => {
                tracing::warn!("the program is killed: it did not end within {:?}", options.stop_timeout);
                program.kill();
                kill.as_mut().reset(tokio::time::Instant::now() + options.stop_timeout);
            }
        }
    }
}

/// Serves in front of the program, once it answers, and until the mesh has drained.
async fn serve(options: Options, mesh: Mesh, local: Mesh, tunnels: Tunnels) -> Result<(), String> {
    let Some(port) = options.app_port else { return Ok(()) };
    let at = inbound::program_at(port.get());
    let drain = mesh.drain().clone();
    tokio::select! {
        () = inbound::answers(at) => {}
        // It never served, and need not begin.
        () = drain.reached(mesh_tower::drain::Phase::LameDuck) => return Ok(()),
    }
    inbound::warn_if_open(at).await;
    let failed = |error: io::Error| format!("--inbound {}: {error}", options.inbound);
    let ready = |address| {
        let (mesh, options) = (mesh.clone(), options.clone());
        async move {
            start::serve_admin(options.admin_addr, options.admin_anywhere, &mesh)?;
            match mesh.serving().await {
                Ok(()) => tracing::info!("ready: {address} is in front of {at}"),
                Err(reason) => tracing::warn!("{address} is in front of {at}, and not serving yet: {reason}"),
            }
            Ok::<(), String>(())
        }
    };
    if options.app_protocol == AppProtocol::Tcp {
        let listener = mesh.bind_tcp(options.inbound).await.map_err(failed)?;
        let address = listener.local_addr();
        let ((), told) =
            tokio::join!(carry::carry_all(tunnels, listener, move || TcpStream::connect(at)), ready(address));
        return told;
    }
    let listener = mesh.bind(options.inbound).await.map_err(failed)?;
    let address = listener.local_addr();
    let program = local.client_for(PROGRAM).map_err(|error| error.to_string())?;
    let server = ToProgram::new(&mesh, program, options.app_protocol, &tunnels).into_server();
    // Authorizers may have to be shown them.
    let served = server::serve(listener, server).deadline(options.drain_timeout).readable_bodies().into_future();
    let (served, told) = tokio::join!(served, ready(address));
    told.and(served.map_err(|error| error.to_string()))
}

/// What the program is told of the proxy, in every spelling that clients know.
fn variables(options: &Options, outbound: &Outbound) -> Vec<(&'static str, String)> {
    let proxy = format!("http://{}", outbound.proxy);
    let direct = match options.no_proxy.as_deref() {
        Some(others) if !others.is_empty() => format!("{others},{DIRECT}"),
        _ => DIRECT.to_owned(),
    };
    let mut variables: Vec<_> =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"].map(|name| (name, proxy.clone())).into();
    variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, direct.clone())));
    // Node.js looks at them where it is told to.
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    variables
}

/// The signals that this process gets, for as long as somebody reads.
fn signals() -> io::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(16);
    for told in PASSED_ON.into_iter().chain([Signal::TERM, Signal::INT]) {
        let mut stream = signal(SignalKind::from_raw(told.as_raw()))?;
        let sender = sender.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(told).await.is_ok() {} });
    }
    Ok(receiver)
}
