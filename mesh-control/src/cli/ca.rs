//! `mesh-control ca`: certificates for programs that do not ask for their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::tls::svid;
use serde_json::json;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::files;
use crate::ca::{CertificateAuthority, INTERMEDIATE_TTL, is_of_replica};

/// Works with the mesh's certificate authority.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Issue(Issue),
    Intermediate(Intermediate),
    RotateRoot(RotateRoot),
}

/// Writes a new key (key.pem), its certificate chain (cert-chain.pem) and the roots (root-cert.pem) into a directory, for
/// programs that do not ask for certificates themselves; and what tells an Envoy to read them, again whenever they are
/// replaced (envoy-certificate.json, envoy-roots.json). With --trust-bundle, whom to trust by trust domain, too, as gRPC reads it
/// (trust-bundles.json).
#[derive(Clone, Debug, clap::Args)]
struct Issue {
    /// Whom the certificate is for: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.
    #[arg(long, value_name = "ID")]
    identity: SpiffeId,
    /// Where to write; the directory is made if need be.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the certificate holds: 24 hours unless set, 7 days at most.
    #[arg(long, value_name = "SECONDS", value_parser = super::serve::seconds)]
    ttl: Option<Duration>,
    /// A foreign trust domain whose workloads the program knows, too, and the file of the roots that vouch for them: PEM, or a
    /// bundle in SPIFFE's form (JSON). May be given several times, or separated by commas.
    #[arg(long, value_name = "DOMAIN=FILE", value_delimiter = ',', value_parser = super::serve::trust_bundle)]
    trust_bundle: Vec<(TrustDomain, PathBuf)>,
    /// Replaces what another identity has there, too.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

/// Begins to replace the root of the server's own authority. Both roots are handed out from now on, after eight days the new
/// one signs, and after eight more the old one is dropped; a server that runs takes part within the hour. It does so by
/// itself in the last two years of a root's ten.
#[derive(Clone, Debug, clap::Args)]
struct RotateRoot {
    /// The --state-dir of the server.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN", default_value_t)]
    trust_domain: TrustDomain,
}

/// Writes an authority of its own for one replica into a directory, in Istio's layout, for `serve --ca-dir`: a new key, and an
/// intermediate of the root in --state-dir, below which there can be no other authority. The root is made where there is none, and
/// its key stays there, on a machine that need not serve anything. To be done again before the intermediate ends; a server takes the new one in
/// while it runs.
#[derive(Clone, Debug, clap::Args)]
struct Intermediate {
    /// What the replica is called, which stands in the certificate: up to 32 letters, digits, dots and dashes.
    #[arg(long, value_name = "NAME", value_parser = replica)]
    name: String,
    /// Where to write; the directory is made if need be.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the intermediate holds: 90 days unless set, and never longer than the root.
    #[arg(long, value_name = "SECONDS", value_parser = super::serve::seconds)]
    ttl: Option<Duration>,
    /// Replaces the authority of somebody else that is there, too.
    #[arg(long)]
    force: bool,
    /// Where the root is kept: the --state-dir of no server at best.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN", default_value_t)]
    trust_domain: TrustDomain,
}

/// Where the authority is.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = true, id = "authority")]
pub(super) struct Place {
    /// The --state-dir of the server, which keeps an authority of its own there.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The directory of a plugged-in authority, in Istio's layout.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Issue(args) => issue(args),
        Command::Intermediate(args) => intermediate(args),
        Command::RotateRoot(args) => {
            let now = SystemTime::now();
            let authority = open(None, Some(&args.state_dir), &args.trust_domain)?;
            authority.rotate_root(now)?;
            super::say(&authority.roots_pem())?;
            Ok(())
        }
    }
}

const KEY: &str = "key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
/// Where gRPC is told whom to trust by trust domain.
pub(super) const BUNDLES: &str = "trust-bundles.json";

/// Where an Envoy is told of the files of a certificate.
pub(super) const ENVOY_CERTIFICATE: &str = "envoy-certificate.json";
/// Where an Envoy is told of the file of the roots.
pub(super) const ENVOY_ROOTS: &str = "envoy-roots.json";

/// Envoy's secrets: files of this directory, which are read again when one of them is replaced.
fn envoy_secrets(dir: &Path) -> [(&'static str, serde_json::Value); 2] {
    const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let file = |name: &str| json!({ "filename": dir.join(name) });
    let watched = json!({ "path": dir });
    let secret =
        |name: &str, kind: &str, value| json!({ "resources": [{ "@type": SECRET, "name": name, kind: value }] });
    let own = json!({ "certificate_chain": file(CHAIN), "private_key": file(KEY), "watched_directory": watched });
    let roots = json!({ "trusted_ca": file(ROOTS), "watched_directory": watched });
    [
        (ENVOY_CERTIFICATE, secret("own", "tls_certificate", own)),
        (ENVOY_ROOTS, secret("roots", "validation_context", roots)),
    ]
}

/// Whether a directory has nobody's key in it, or that of this identity: nobody can get another one back.
fn check_place(dir: &Path, identity: &SpiffeId) -> anyhow::Result<()> {
    let there = [KEY, CHAIN].map(|name| dir.join(name)).into_iter().find(|path| path.symlink_metadata().is_ok());
    let Some(there) = there else { return Ok(()) };
    let chain = dir.join(CHAIN);
    // A pipe would be waited for.
    let leaf = if chain.is_file() { CertificateDer::from_pem_file(&chain).ok() } else { None };
    let whose = match leaf.and_then(|leaf| svid::id(&leaf).ok()) {
        Some(whose) if whose == *identity => return Ok(()),
        Some(whose) => format!("belongs to {whose}"),
        None => "belongs to nobody knows whom".to_owned(),
    };
    let there = there.display();
    bail!("{there} is there, and {whose}, not to {identity}: nothing is replaced; choose another --out, or say --force")
}

fn issue(args: &Issue) -> anyhow::Result<()> {
    let domain: TrustDomain = args.identity.trust_domain().parse()?;
    if !args.force {
        check_place(&args.out, &args.identity)?;
    }
    let authority = open(args.place.ca_dir.as_deref(), args.place.state_dir.as_deref(), &domain)?;
    let (ttl, now) = (i64::try_from(args.ttl.unwrap_or_default().as_secs())?, SystemTime::now());
    // What the server has in force is its own: nothing of it is kept here.
    let authority =
        authority.trust_bundles(args.trust_bundle.clone(), Vec::new(), None, now).context("--trust-bundle")?;
    if let Some(problem) = authority.federated(now).into_iter().find_map(|bundle| bundle.problem) {
        bail!("--trust-bundle: {problem}");
    }
    let (key, issued) = authority.issue_with_key(&args.identity, ttl, now)?;
    let dir = &args.out;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (roots, chain) = issued.chain.split_last().context("the chain is empty")?;
    // One that is there is read: whom it named goes with it.
    let bundles = match args.trust_bundle.is_empty() && !dir.join(BUNDLES).exists() {
        true => None,
        false => Some(crate::ca::bundle_map(&domain, roots, &issued.trust_bundles, now)?),
    };
    files::write(&dir.join(KEY), key.as_bytes(), 0o600)?;
    files::write(&dir.join(CHAIN), chain.concat().as_bytes(), 0o644)?;
    files::write(&dir.join(ROOTS), roots.as_bytes(), 0o644)?;
    if let Some(bundles) = bundles {
        files::write(&dir.join(BUNDLES), format!("{bundles:#}\n").as_bytes(), 0o644)?;
    }
    for (name, secret) in envoy_secrets(&fs::canonicalize(dir)?) {
        files::write(&dir.join(name), format!("{secret:#}\n").as_bytes(), 0o644)?;
    }
    let serial = &issued.serial;
    super::say(&format!(
        "{} holds for {} s, serial {serial}: {}\n",
        args.identity,
        issued.ttl.as_secs(),
        dir.display()
    ))?;
    Ok(())
}

fn replica(text: &str) -> Result<String, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    match (1..=32).contains(&text.len()) && text.bytes().all(is_name) {
        true => Ok(text.to_owned()),
        false => Err("expected up to 32 letters, digits, dots and dashes".to_owned()),
    }
}

fn intermediate(args: &Intermediate) -> anyhow::Result<()> {
    let (dir, now) = (&args.out, SystemTime::now());
    if !args.force {
        // A key that is replaced cannot be got back.
        let there = crate::ca::called(dir).context("nothing is replaced; choose another --out, or say --force")?;
        if let Some(there) = there.filter(|there| !is_of_replica(there, &args.name)) {
            bail!(
                "{} has the authority {there:?}, and none of {}: nothing is replaced; choose another --out, or say --force",
                dir.display(),
                args.name
            );
        }
    }
    let life = args.ttl.unwrap_or(INTERMEDIATE_TTL);
    ensure!(life.as_secs() > 0, "--ttl: an intermediate holds for a second at least");
    let authority = open(None, Some(&args.state_dir), &args.trust_domain)?;
    let written = authority.intermediate(&args.name, life, now)?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, text) in &written {
        files::write(&dir.join(name), text.as_bytes(), 0o600)?;
    }
    if authority.roots().len() > 1 {
        eprintln!(
            "mesh-control: the root is being replaced, and both are handed out: make the intermediates of all replicas anew now, \
             and again nine days and seventeen days after this began"
        );
    }
    super::say(&format!("the intermediate of {} holds for {} s: {}\n", args.name, life.as_secs(), dir.display()))?;
    Ok(())
}

/// From now on a crash leaves no core dump, which would have the keys in it.
pub(super) fn leave_no_core() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// The authority: the plugged-in one, or that of a state directory, or one that ends with the process.
pub(super) fn open(
    ca_dir: Option<&Path>,
    state_dir: Option<&Path>,
    domain: &TrustDomain,
) -> anyhow::Result<CertificateAuthority> {
    leave_no_core()?;
    let now = SystemTime::now();
    match ca_dir {
        Some(dir) => CertificateAuthority::plugged_in(dir, state_dir, domain.clone(), now),
        None => CertificateAuthority::own(state_dir, domain.clone(), now),
    }
}
