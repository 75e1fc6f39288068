//! Bookinfo on the mesh: see `bookinfo --help`.

use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use mesh_control::serve::status;
use mesh_examples::bookinfo::tour::{self, Human, Json, Options, Reporter};
use mesh_examples::bookinfo::{App, Bookinfo, Service, manifests};
use mesh_examples::cli::{self, Format, Printing, Signals, say};
use mesh_examples::node::Join;
use mesh_examples::text;
use serde_json::json;
use tokio::sync::watch;

/// Runs bookinfo on the mesh: four services in six versions, each a real server, and the control plane, all in this
/// process. They talk by mutual TLS (STRICT), and only who is listed may call: whoever else asks is refused.
///
/// Without options it makes a tour: traffic goes through the product page while one routing change after another
/// comes into force (everybody on v1; reviews 80/20; one user on v2; faults for that user; back). For each phase it
/// shows who answered, how often and how fast, and compares that with what the files say: shares within five standard
/// deviations, everything else exactly. The exit code is 0 if everything was as the files say, else 1.
///
/// With a directory, the tour goes through its files of YAML instead, each by itself on top of the plain services; a
/// directory in it counts as one phase. There, what the control plane reports as not supported yet is no failure:
/// only what neither takes effect nor is reported is.
#[derive(Debug, Parser)]
#[command(name = "bookinfo", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// A directory of routing files, such as Istio's samples/bookinfo/networking.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    printing: Printing,
    /// Pages a second.
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// For how long each phase is looked at.
    #[arg(long, default_value = "5s", value_parser = text::duration)]
    phase: Duration,
    /// Keeps bookinfo up for the browser instead, with the routing files in DIR, read again whenever they change.
    #[arg(long)]
    serve: bool,
    /// Where --serve has the product page.
    #[arg(long, default_value = "127.0.0.1:9080", value_name = "IP:PORT")]
    listen: SocketAddr,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one service as a process of its own, which registers itself with a control plane.
    ///
    /// On SIGTERM or SIGINT it leaves without losing a request.
    Service {
        /// productpage, details, reviews or ratings.
        app: App,
        /// Its version: reviews v1 has no stars, v2 black ones, v3 red ones.
        #[arg(long, default_value = "v1")]
        version: String,
        /// Where it listens; port 0 takes a free one, and the line that it prints says which.
        #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), value_name = "IP:PORT")]
        listen: SocketAddr,
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        join: Join,
    },
    /// Prints the services and subsets below every phase, for a control plane in another process.
    ///
    /// With --security also who may call whom, which takes one that issues certificates: mesh-control serve --dev.
    Manifests {
        /// Prints PeerAuthentication and AuthorizationPolicies, too.
        #[arg(long)]
        security: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = cli::parse();
    match &args.command {
        Some(Command::Service { printing, .. }) => printing.log(),
        _ => args.printing.log(),
    }
    match args.command {
        Some(Command::Service { app, version, listen, printing, join }) => {
            service(app, &version, listen, printing, &join).await?;
        }
        Some(Command::Manifests { security }) => {
            let security = if security { format!("---\n{}", manifests::security()) } else { String::new() };
            say((manifests::base() + &security).trim_end())?;
        }
        None if args.serve => serve(args.listen, args.dir, args.printing).await?,
        None => return tour(args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn tour(args: Args) -> anyhow::Result<ExitCode> {
    let phases = match &args.dir {
        Some(dir) => manifests::read(dir).with_context(|| format!("cannot read {}", dir.display()))?,
        None => manifests::tour(),
    };
    let out = io::stdout();
    let is_terminal = out.is_terminal();
    let mut reporter: Box<dyn Reporter> = match args.printing.format() {
        Format::Json => Box::new(Json(out)),
        Format::Text => Box::new(Human::new(out, is_terminal)),
    };
    let options = Options { rate: args.rate, phase: args.phase, strict: args.dir.is_none() };
    let bookinfo = Bookinfo::start().await?;
    let outlooks = tour::run(&bookinfo, &phases, options, &mut *reporter).await?;
    bookinfo.stop().await?;
    Ok(if outlooks.iter().all(tour::Outlook::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn serve(listen: SocketAddr, dir: Option<PathBuf>, printing: Printing) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let bookinfo = Bookinfo::start_at(listen, dir.clone()).await?;
    let page = bookinfo.services().iter().find(|running| running.service.app == App::Productpage);
    let page = page.context("there is no product page")?.address;
    let control = bookinfo.embedded().xds_addr();
    let page = format!("http://{page}/productpage");
    // The console ends with the sender.
    let (_open, stop) = watch::channel(false);
    let (server, inspect) = (bookinfo.embedded().server().clone(), Arc::new(bookinfo.embedded().plane().clone()));
    let console = status::listen((Ipv4Addr::LOCALHOST, 0).into(), Vec::new(), server, inspect, stop).await?.0;
    let console = format!("http://{console}/");
    let caller = App::Productpage.service_account();
    let mut text = format!(
        "product page   {page}\n\
         console        {console}\n\
         control plane  {control}; try: mesh-curl --control {control} --service-account \
         {caller} http://reviews:9080/reviews/0"
    );
    if let Some(dir) = &dir {
        text += &format!("\nroutes         {}; what is changed there comes into force", dir.display());
    }
    printing
        .say(text, &json!({ "product_page": page, "console": console, "control_plane": control, "routes": dir }))?;
    signals.first().await;
    bookinfo.stop().await?;
    Ok(())
}

async fn service(app: App, version: &str, listen: SocketAddr, printing: Printing, join: &Join) -> anyhow::Result<()> {
    let service = Service::new(app, version);
    let mesh = join.mesh(service.workload())?.start()?;
    // Before anything is said: whoever reads the address may send a signal at once.
    mesh.drain_on_signals()?;
    join.serve_admin(&mesh, printing).await?;
    let mut running = service.start(mesh, listen).await?;
    let (name, address) = (service.to_string(), running.address);
    let state = json!({ "service": name, "address": address, "state": "serving" });
    printing.say(format_args!("{name} serving on {address}"), &state)?;
    running.ended().await?;
    Ok(())
}
