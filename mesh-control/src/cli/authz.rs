//! `mesh-control authz`: what the policies of a configuration say of a request. Decided by what the data plane decides by:
//! the listener is rendered for the workload, read by the library's own decoder, and asked.

mod preview;
mod records;
mod render;
mod suggest;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{Request, Uri, Version};
use mesh_core::authz::{AccessRequest, Connection, Verdict};
use mesh_core::filter::FilterRegistry;
use mesh_core::identity::SpiffeId;
use mesh_core::jwt::{Claims, Refusal};
use mesh_core::model::{Listener, RouteAction, RouteSource};
use mesh_core::path::PathNormalization;
use mesh_core::request::{RequestHead, is_reserved};
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::state::States;
use mesh_core::view::RouteTable;
use mesh_core::xds::decode::{Options, decode};
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::input::{Lines, Values, object};
use super::{Format, Printing, tell};
use crate::catalog::{Catalog, Client, ClientClass, Kind};
use crate::explain::seen;
use crate::explain::workload::{self, Named, Workload, WorkloadName, pair};
use crate::plane::{Plane, PlaneOptions};
use crate::render::listener::SERVER_PREFIX;

/// Works with policies of who may do what.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Test(Box<Test>),
    Render(render::Args),
    Suggest(suggest::Args),
    Preview(preview::Args),
}

/// Says whether a request is let in, and by which rule. Mutual TLS itself is not tried: who asks is taken to be known.
///
/// The exit code is 0 where it is let in, 3 where it is refused, and 4 where an authorizer is asked about it (CUSTOM). It is 0
/// for --requests once every line has its answer. 1 is for what cannot be answered, 2 for a command line that makes no sense.
#[derive(Clone, Debug, clap::Args)]
struct Test {
    #[command(flatten)]
    directory: Directory,
    /// As for `serve` with --trust-bundle: a namespace or a service account that is let in is one of the mesh's own trust domain.
    #[arg(long)]
    federated: bool,
    /// Many requests, one JSON object a line; - is stdin. Each has `id`, `workload` {namespace, labels}, and as they are
    /// needed `protocol` (http, grpc, tcp), `method`, `host`, `path`, `headers`, `source_ip`, `remote_ip`,
    /// `destination_ip`, `destination_port`, `sni`, `principal`, `claims`.
    #[arg(long, value_name = "FILE", conflicts_with = "to", required_unless_present = "to")]
    requests: Option<PathBuf>,
    #[command(flatten)]
    single: Single,
    #[command(flatten)]
    printing: Printing,
}

/// One request, by options.
#[derive(Clone, Debug, clap::Args)]
struct Single {
    /// Who is asked: NAMESPACE/NAME. Its labels are those that the service of its name selects, those of the WorkloadGroup
    /// of its name, or `app: NAME` where an object selects that. What no object knows is an error.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    to: Option<WorkloadName>,
    /// A label of the workload, in place of those: KEY=VALUE. May be given several times.
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "requests")]
    label: Vec<String>,
    /// Who asks: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT. Nobody who is known, unless set.
    #[arg(long = "identity", alias = "from", value_name = "ID", conflicts_with = "requests")]
    from: Option<String>,
    /// The protocol: http, grpc or tcp (bytes that nobody looks into).
    #[arg(long, value_enum, default_value_t, value_name = "PROTOCOL", conflicts_with = "requests")]
    protocol: Protocol,
    /// The method: GET, or POST for grpc, unless set.
    #[arg(long, value_name = "METHOD", conflicts_with = "requests")]
    method: Option<String>,
    /// The path, with the query: / unless set.
    #[arg(long, value_name = "PATH", conflicts_with = "requests")]
    path: Option<String>,
    /// The authority; the workload's name unless set.
    #[arg(long, value_name = "HOST", conflicts_with = "requests")]
    host: Option<String>,
    /// A header: NAME:VALUE. May be given several times. A token in it is looked at as the workload's server would.
    #[arg(long, value_name = "NAME:VALUE", conflicts_with = "requests")]
    header: Vec<String>,
    /// A claim of a token that is taken to be good: KEY=VALUE, or KEY=JSON where the value begins with `[`, `{` or `"`. `iss`
    /// and `sub` are claims, too. May be given several times, or once as a whole: a JSON object.
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "requests")]
    claim: Vec<String>,
    /// The address that the connection comes from.
    #[arg(long, value_name = "IP", conflicts_with = "requests")]
    source_ip: Option<IpAddr>,
    /// The address that the request says it is from. Nobody's word is taken for it.
    #[arg(long, value_name = "IP", conflicts_with = "requests")]
    remote_ip: Option<IpAddr>,
    /// The address that the workload bound.
    #[arg(long, value_name = "IP", conflicts_with = "requests")]
    destination_ip: Option<IpAddr>,
    /// The port that the workload bound: 80 unless set.
    #[arg(long, value_name = "PORT", conflicts_with = "requests")]
    port: Option<u16>,
    /// The name that the TLS handshake asks for.
    #[arg(long, value_name = "NAME", conflicts_with = "requests")]
    sni: Option<String>,
}

/// A request, as a line has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    id: serde_json::Value,
    workload: Workload,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    #[serde(default)]
    source_ip: Option<IpAddr>,
    #[serde(default)]
    remote_ip: Option<IpAddr>,
    #[serde(default)]
    destination_ip: Option<IpAddr>,
    #[serde(default)]
    destination_port: Option<u16>,
    #[serde(default)]
    sni: Option<String>,
    #[serde(default)]
    principal: Option<String>,
    #[serde(default)]
    claims: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    #[default]
    Http,
    Grpc,
    Tcp,
}

/// What the policies say.
#[derive(Clone, Debug, Serialize)]
struct Answer {
    id: serde_json::Value,
    verdict: &'static str,
    /// The policy that decided; none where no rule was for the request.
    policy: Option<String>,
    /// Its rule.
    rule: Option<String>,
    /// What those that are only tried would have said.
    dry_run: Option<Tried>,
    /// Why, where it was no rule; and what of the request had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "joined")]
    note: Vec<String>,
    /// Whether the first note is why.
    #[serde(skip)]
    is_reasoned: bool,
}

fn joined<S: serde::Serializer>(notes: &[String], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&notes.join("; "))
}

#[derive(Clone, Debug, Serialize)]
struct Tried {
    verdict: &'static str,
    rule: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Test(args) => test(args),
        Command::Render(args) => render::run(args).map(|()| ExitCode::SUCCESS),
        Command::Suggest(args) => suggest::run(args),
        Command::Preview(args) => preview::run(args),
    }
}

fn options(is_federated: bool) -> PlaneOptions {
    PlaneOptions::default().federated(is_federated)
}

fn test(args: &Test) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let _entered = runtime.enter();
    let plane = args.directory.plane(options(args.federated))?;
    let print = |answer: &Answer| match args.printing.format() {
        Format::Json => super::say(&format!("{}\n", serde_json::to_string(answer)?)),
        Format::Text => super::say(&text(answer)),
    };
    let mut servers = Servers { plane: &plane, asked: HashMap::new() };
    let Some(file) = &args.requests else {
        let answer = answer(&mut servers, &asked(&args.single, &plane)?)?;
        print(&answer)?;
        return Ok(ExitCode::from(match answer.verdict {
            "allow" => 0,
            "ask" => 4,
            _ => 3,
        }));
    };
    let mut lines = Lines::of(file)?;
    while let Some((place, line)) = lines.next_line()? {
        let asked: Asked = object(&line).with_context(|| place.clone())?;
        print(&answer(&mut servers, &asked).with_context(|| place)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The request of the command line.
fn asked(args: &Single, plane: &Plane) -> anyhow::Result<Asked> {
    let to = args.to.as_ref().context("--to NAMESPACE/NAME is needed")?;
    let Named { name, workload, .. } = tell(Workload::named("--to", to, &args.label, &plane.snapshot())?);
    let mut headers: BTreeMap<String, Values> = BTreeMap::new();
    for text in &args.header {
        let (name, value) = pair(text, ':')?;
        match headers.entry(name).or_insert(Values::Several(Vec::new())) {
            Values::Several(values) => values.push(value),
            Values::One(_) => {}
        }
    }
    Ok(Asked {
        id: serde_json::Value::Null,
        workload,
        protocol: args.protocol,
        method: args.method.clone(),
        host: Some(args.host.clone().unwrap_or(name)),
        path: args.path.clone(),
        headers,
        source_ip: args.source_ip,
        remote_ip: args.remote_ip,
        destination_ip: args.destination_ip,
        destination_port: args.port,
        sni: args.sni.clone(),
        principal: args.from.clone(),
        claims: claims(&args.claim)?,
    })
}

/// The claims of a token; none where none is given.
fn claims(given: &[String]) -> anyhow::Result<Option<serde_json::Map<String, serde_json::Value>>> {
    let mut claims = serde_json::Map::new();
    for text in given {
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text);
        if text.starts_with('{') {
            let serde_json::Value::Object(whole) = json(text).with_context(|| format!("--claim {text}"))? else {
                continue;
            };
            claims.extend(whole);
            continue;
        }
        let (name, value) = pair(text, '=').with_context(|| format!("--claim {text}"))?;
        let value = match value.starts_with(['[', '{', '"']) {
            true => json(&value).with_context(|| format!("--claim {text}"))?,
            false => value.into(),
        };
        claims.insert(name, value);
    }
    Ok((!claims.is_empty()).then_some(claims))
}

fn answer(servers: &mut Servers<'_>, asked: &Asked) -> anyhow::Result<Answer> {
    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let destination = SocketAddr::new(asked.destination_ip.unwrap_or(LOCALHOST), asked.destination_port.unwrap_or(80));
    let mut notes =
        Vec::from_iter(workload::foreign(&asked.workload.namespace, &servers.plane.snapshot().namespaces()));
    let (table, paths) = servers.table(&asked.workload, destination)?;
    let peer: Option<SpiffeId> = asked
        .principal
        .as_deref()
        .map(|principal| {
            let id = principal.strip_prefix("spiffe://").unwrap_or(principal);
            // NAMESPACE/NAME would be a workload of a trust domain that nobody has.
            let is_workload = id.contains("/ns/") && id.contains("/sa/");
            anyhow::ensure!(is_workload, "principal: {principal}: TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT is needed");
            format!("spiffe://{id}").parse().map_err(|invalid| anyhow!("principal: {invalid}"))
        })
        .transpose()?;
    let source = SocketAddr::new(asked.source_ip.unwrap_or(LOCALHOST), 0);
    let connection =
        Connection { peer: peer.as_ref(), source, remote: source, destination, server_name: asked.sni.as_deref() };
    if asked.remote_ip.is_some_and(|ip| ip != connection.source.ip()) {
        let note = "remote_ip has no effect: nobody's word is taken for it but at gateways with a gatewayTopology, and it is \
            source_ip";
        notes.push(note.to_owned());
    }
    if asked.protocol == Protocol::Tcp {
        if let Some(reason) = table.why_no_bytes() {
            return Ok(refused(asked, reason.to_string(), notes));
        }
        return Ok(told(asked, &table.verdict_on_bytes(connection), notes));
    }
    let mut tokens: Vec<Claims> = match asked.claims.as_ref().map(|claims| verified(claims, table)) {
        None => Vec::new(),
        Some(Ok(claims)) => Vec::from_iter(claims),
        // As a token with these claims would be.
        Some(Err(refusal)) => return Ok(refused(asked, of_token(&refusal), notes)),
    };
    if asked.claims.is_some() && table.authenticator().is_none() {
        notes.push(NO_TOKENS.to_owned());
    }
    for name in asked.headers.keys().filter(|name| is_proxys(name)) {
        notes.push(format!("{name} is not looked at: servers take it off every request but those of trusted proxies"));
    }
    let malformed = |error: anyhow::Error, notes| Ok(refused(asked, format!("malformed: {error}"), notes));
    let mut request = match canonical(asked, table, *paths) {
        Ok(request) => request,
        Err(error) => return malformed(error, notes),
    };
    match table.authenticator() {
        Some(authenticator) => {
            let head = RequestHead::received(&request)?;
            let known = match authenticator.authenticate(&head, SystemTime::now()) {
                Ok(known) => known,
                Err(refusal) => return Ok(refused(asked, of_token(&refusal), notes)),
            };
            tokens.extend(known.claims_of_all().iter().cloned());
            // What decides from here on sees what the application will see.
            let (mut parts, ()) = request.into_parts();
            known.apply(&mut parts);
            request = Request::from_parts(parts, ());
        }
        None if request.headers().contains_key(AUTHORIZATION) => {
            notes.push(NO_TOKENS.to_owned());
        }
        None => {}
    }
    let head = RequestHead::received(&request)?;
    // Whoever is asked does not let in whom a policy refuses.
    let access = AccessRequest { head: Some(head), connection: Some(connection), tokens: &tokens };
    let asked_by = table.askers().iter().find_map(|asker| asker.asked_by(&access));
    let admission = table.admit(&head, Some(connection), &tokens, &mut fastrand::Rng::new());
    let mut answer = told(asked, admission.verdict(), notes);
    if let Some(rule) = asked_by.filter(|_| admission.verdict().is_allowed) {
        answer.verdict = "ask";
        answer.policy = Some(policy_of(rule));
        answer.rule = Some(rule.to_owned());
    }
    // A workload that must not serve answers everybody with the reason.
    if let Ok((_, route, _)) = admission.into_route()
        && let RouteAction::Direct(direct) = &route.action
    {
        answer.verdict = "deny";
        answer.note.insert(0, String::from_utf8_lossy(&direct.body).into_owned());
        answer.is_reasoned = true;
    }
    Ok(answer)
}

/// The request as the workload's server takes it, with its path in the form that everybody decides by.
fn canonical(asked: &Asked, table: &RouteTable, paths: PathNormalization) -> anyhow::Result<Request<()>> {
    let mut request = request(asked)?;
    let head = RequestHead::received(&request)?;
    let target = seen::canonical(&head, paths, table)?;
    let mut uri = request.uri().clone().into_parts();
    // That of CONNECT is an authority alone, and has no path to set; that of an absolute one goes before the Host.
    if uri.authority.is_none() || uri.scheme.is_some() {
        uri.path_and_query = Some(PathAndQuery::try_from(target).context("malformed path")?);
        *request.uri_mut() = Uri::from_parts(uri).context("malformed path")?;
    }
    Ok(request)
}

/// Why a token refuses a request, and what to do where this command cannot tell.
fn of_token(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NoKeys(why) => format!(
            "the token's issuer is known, and its keys are not fetched here ({why}): give what it says by --claim"
        ),
        Refusal::WrongAudience => format!("403: the token: {refusal}"),
        refusal => format!("401: the token: {refusal}"),
    }
}

/// The servers that were asked before: there are fewer of them than requests.
struct Servers<'p> {
    plane: &'p Plane,
    asked: HashMap<(Workload, SocketAddr), (RouteTable, PathNormalization)>,
}

impl Servers<'_> {
    /// What a workload's server is told, as it would be, and what it makes of paths.
    fn table(&mut self, workload: &Workload, bound: SocketAddr) -> anyhow::Result<&(RouteTable, PathNormalization)> {
        Ok(match self.asked.entry((workload.clone(), bound)) {
            Entry::Occupied(asked) => asked.into_mut(),
            Entry::Vacant(first) => first.insert(table(self.plane, workload, bound)?),
        })
    }
}

/// What is said of a workload whose server takes every request for one without a token.
const NO_TOKENS: &str = "no RequestAuthentication is for this workload: its server looks at no token";

/// The claims of a token that is taken to be good, as the workload's server reads those of its issuer: not at all where it looks
/// at no tokens, and not those of an issuer that it does not know.
fn verified(
    claims: &serde_json::Map<String, serde_json::Value>,
    table: &RouteTable,
) -> Result<Option<Claims>, Refusal> {
    let issuer = claims.get("iss").and_then(serde_json::Value::as_str).unwrap_or_default();
    let Some(authenticator) = table.authenticator() else { return Ok(None) };
    let words = authenticator.word_lists_of(issuer).ok_or(Refusal::UnknownIssuer)?;
    Ok(Some(Claims::unverified(claims.clone(), &words)))
}

fn table(plane: &Plane, workload: &Workload, bound: SocketAddr) -> anyhow::Result<(RouteTable, PathNormalization)> {
    let client = Client::new("authz", ClientClass::Library, bound.ip())
        .namespace(&*workload.namespace)
        .labels(workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let name = format!("{SERVER_PREFIX}{bound}");
    let resource = plane.snapshot().resource(&client, Kind::Listener, &name);
    let Some(resource) = resource else { bail!("there is no server at port {}", bound.port()) };
    let decoded = decode(ResourceType::Listener, &resource.body, &Options::default())?;
    let Resource::Listener(listener) = decoded.resource else { bail!("no listener") };
    let Listener::Server(server) = &*listener else { bail!("no server's listener") };
    let http = server.chains().next().map(|chain| &chain.http).ok_or_else(|| anyhow!("no filter chain"))?;
    let RouteSource::Inline(routes) = &http.routes else { bail!("no routes") };
    let table = RouteTable::compile(routes.clone(), http, &FilterRegistry::default(), &States::default(), &name)?;
    Ok((table, http.paths))
}

fn request(asked: &Asked) -> Result<Request<()>, http::Error> {
    let is_grpc = asked.protocol == Protocol::Grpc;
    let method = asked.method.as_deref().unwrap_or(if is_grpc { "POST" } else { "GET" });
    let mut request = Request::builder().method(method).uri(asked.path.as_deref().unwrap_or("/"));
    request = request.version(Version::HTTP_11).header("host", asked.host.as_deref().unwrap_or("localhost"));
    if is_grpc {
        request = request.header("content-type", "application/grpc");
    }
    for (name, values) in &asked.headers {
        for value in values.as_slice().iter().filter(|_| !name.eq_ignore_ascii_case("host") && !is_proxys(name)) {
            request = request.header(name, value);
        }
    }
    request.body(())
}

/// Whether only a proxy may set it.
fn is_proxys(name: &str) -> bool {
    is_reserved(&name.to_ascii_lowercase())
}

fn told(asked: &Asked, verdict: &Verdict<'_>, notes: Vec<String>) -> Answer {
    let word = |is_allowed: bool| if is_allowed { "allow" } else { "deny" };
    let rule = verdict.policy.map(str::to_owned);
    Answer {
        id: asked.id.clone(),
        verdict: word(verdict.is_allowed),
        policy: rule.as_deref().map(policy_of),
        rule,
        dry_run: verdict
            .shadow
            .map(|shadow| Tried { verdict: word(shadow.is_allowed), rule: shadow.policy.map(str::to_owned) }),
        note: notes,
        is_reasoned: false,
    }
}

fn policy_of(rule: &str) -> String {
    rule.rsplit_once('#').map_or(rule, |(policy, _)| policy).to_owned()
}

/// A server answers it before it looks at policies.
fn refused(asked: &Asked, why: String, mut notes: Vec<String>) -> Answer {
    notes.insert(0, why);
    let denied = Verdict { is_allowed: false, ..Verdict::ALLOWED };
    Answer { is_reasoned: true, ..told(asked, &denied, notes) }
}

fn text(answer: &Answer) -> String {
    let by = |rule: &Option<String>| rule.as_deref().map_or("no rule is for it".to_owned(), str::to_owned);
    let (reason, notes) = match answer.note.split_first() {
        Some((reason, notes)) if answer.is_reasoned => (reason.clone(), notes),
        _ => (by(&answer.rule), &answer.note[..]),
    };
    let mut text = format!("{}: {reason}\n", answer.verdict);
    if let Some(tried) = &answer.dry_run {
        text += &format!("dry run: {}: {}\n", tried.verdict, by(&tried.rule));
    }
    text + &notes.iter().map(|note| format!("note: {note}\n")).collect::<String>()
}
