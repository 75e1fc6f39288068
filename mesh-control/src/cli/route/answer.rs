//! Where a request goes, by the routes that its workload is told of. They are rendered, decoded and compiled once for each
//! workload and target; a request then costs a look-up.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::{Decision, Reply};
use mesh_core::model::{Fault, Forward, Fraction, HeaderChange, Mirror, Route, RouteAction, SplitBy};
use mesh_core::request::RequestHead;
use mesh_core::request_info::RequestInfo;
use mesh_core::rewrite::{apply_to_response, location, rewrite};
use mesh_core::view::{Destination, RoutePosition, RouteTable, plain_weights};
use serde::Serialize;

use super::request::{Asked, Kind, Protocol};
use crate::catalog::Client;
use crate::cli::input::Values;
use crate::explain::seen::{Entrance, OPAQUE, Seen, Told, canonical, client, gateway, listener_for, not_by_tls};
use crate::explain::workload::{self, Workload, WorkloadName};
use crate::explain::{treatment, treatment_of_server};
use crate::plane::Snapshot;
use crate::policy::route::{ClusterKey, FallbackName};
use crate::render::BLACK_HOLE;

/// What becomes of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Answer {
    id: serde_json::Value,
    pub(super) outcome: Outcome,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clusters: Vec<To>,
    /// As it would be sent to the first of the clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Sent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_host: Option<String>,
    /// What the route sets on answers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    response_headers: BTreeMap<String, Values>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    response_headers_removed: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mirrors: Vec<Mirrored>,
    /// What of the line had no effect, and what else may become of such a request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    /// How it is treated on its way, where answers are compared.
    #[serde(flatten)]
    treatment: BTreeMap<&'static str, serde_json::Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Forward,
    Redirect,
    Direct,
    #[default]
    Error,
}

/// A cluster that requests go to.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct To {
    #[serde(flatten)]
    service: Service,
    weight: u32,
    /// Where they are others than those of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Sent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers: Option<BTreeMap<String, Values>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers_removed: Option<Vec<String>>,
}

/// What a cluster is of: a service by its name and namespace, or a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Service {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subset: Option<String>,
    name: String,
}

/// A request as it would be sent.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Sent {
    path: String,
    host: String,
    headers: BTreeMap<String, Values>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Mirrored {
    #[serde(flatten)]
    service: Service,
    percent: f64,
}

impl Answer {
    /// That to a line which is no request.
    pub(super) fn no_request(id: serde_json::Value, why: String) -> Answer {
        Answer { id, reason: Some(why), ..Answer::default() }
    }

    fn failed(error: &MeshError) -> Answer {
        let status = Some(error.kind().http_status().as_u16());
        Answer { status, reason: Some(error.detail().to_owned()), ..Answer::default() }
    }
}

/// What requests are decided by, as far as it was asked for before: there is less of it than of requests.
pub(super) struct Deciders {
    /// Those that objects are in.
    namespaces: BTreeSet<String>,
    snapshot: Arc<Snapshot>,
    /// Whether answers are to be compared: then they say how requests are treated, too.
    compares: bool,
    /// By workload, then by target.
    targets: HashMap<Workload, HashMap<String, Result<Seen, MeshError>>>,
    servers: HashMap<(Workload, SocketAddr), Result<Seen, MeshError>>,
    /// By what lines call them.
    gateways: HashMap<String, Result<Gateway, MeshError>>,
}

/// How many targets are remembered: a file may ask for any number.
const MOST_REMEMBERED: usize = 10_000;

impl Deciders {
    pub(super) fn of(snapshot: Arc<Snapshot>) -> Deciders {
        let namespaces = snapshot.namespaces();
        Deciders {
            namespaces,
            snapshot,
            compares: false,
            targets: HashMap::new(),
            servers: HashMap::new(),
            gateways: HashMap::new(),
        }
    }

    /// The same, for answers that are compared.
    pub(super) fn comparing(self) -> Deciders {
        Deciders { compares: true, ..self }
    }

    /// What becomes of a request.
    pub(super) fn answer(&mut self, asked: &Asked) -> Answer {
        let mut answer = match asked.kind {
            Kind::Gateway => self.at_gateway(asked),
            Kind::Mesh => self.outbound(asked).unwrap_or_else(|error| Answer::failed(&error)),
            Kind::Inbound => self.inbound(asked).unwrap_or_else(|error| Answer::failed(&error)),
        };
        answer.id = asked.id.clone();
        // Nobody need say where a caller is.
        if asked.kind != Kind::Gateway && asked.source.namespace != "default" {
            answer.notes.extend(workload::foreign(&asked.source.namespace, &self.namespaces));
        }
        answer
    }

    fn outbound(&mut self, asked: &Asked) -> Result<Answer, MeshError> {
        let target = format!("{}:{}", asked.name.to_ascii_lowercase(), asked.port);
        let (snapshot, compares) = (Arc::clone(&self.snapshot), self.compares);
        let seen = self.target(&asked.source, &target).as_ref().map_err(MeshError::clone)?;
        let is_bytes = asked.is_tls || asked.protocol == Protocol::Tcp;
        let mut answer = match seen.connections.as_ref().filter(|_| is_bytes) {
            Some(table) => {
                // What of the library takes the connection knows the name that the application asks for.
                let name = asked.server_name().unwrap_or_default();
                let head = RequestHead::with_authority(&asked.head, name);
                let found = table.find(&head, &mut fastrand::Rng::with_seed(0));
                let (position, route, chosen) = found.map_err(|error| no_connection(error, name))?;
                let mut answer = Decided { asked, head: &asked.head, seen, table, position, route }.answer(chosen);
                answer.request = None;
                answer
            }
            None => {
                let head = RequestHead::with_authority(&asked.head, &asked.host);
                let (position, route, chosen) = seen.table.find(&head, &mut fastrand::Rng::with_seed(0))?;
                let decided = Decided { asked, head: &asked.head, seen, table: &seen.table, position, route };
                let mut answer = decided.answer(chosen);
                if asked.protocol == Protocol::Tcp && answer.outcome == Outcome::Forward {
                    answer.request = None;
                    answer.notes.push("no rule is on its connections: they follow the route of GET /".to_owned());
                }
                if asked.is_tls && asked.protocol != Protocol::Tcp {
                    decided.refuse_tls(&mut answer);
                }
                if compares && answer.outcome == Outcome::Forward {
                    answer.treatment = treatment(&snapshot, &client(&asked.source), seen, &head);
                }
                answer
            }
        };
        answer.notes.extend(seen.hidden.clone());
        answer.note_ineffective(asked, "the library goes by the host");
        Ok(answer)
    }

    fn target(&mut self, source: &Workload, target: &str) -> &Result<Seen, MeshError> {
        let is_known = self.targets.get(source).is_some_and(|targets| targets.contains_key(target));
        if !is_known {
            self.learn(source, target);
        }
        let known = self.targets.get(source).and_then(|targets| targets.get(target));
        known.expect("what was not known was learned")
    }

    fn learn(&mut self, source: &Workload, target: &str) {
        let seen = Seen::whole_of_target(&self.snapshot, &client(source), target);
        if !self.targets.contains_key(source) && self.targets.len() >= MOST_REMEMBERED {
            self.targets.clear();
        }
        let targets = self.targets.entry(source.clone()).or_default();
        if targets.len() >= MOST_REMEMBERED {
            targets.clear();
        }
        targets.insert(target.to_owned(), seen);
    }

    /// What becomes of a request that comes to a gateway. Where no connection comes about, there is no status.
    fn at_gateway(&mut self, asked: &Asked) -> Answer {
        let refused = |why: &str| Answer { reason: Some(why.to_owned()), ..Answer::default() };
        let Some(called) = asked.gateway.as_deref() else {
            return refused("gateway: missing; it is the NAMESPACE/NAME of one");
        };
        let (snapshot, compares) = (Arc::clone(&self.snapshot), self.compares);
        let arrived = match self.gateway(called).and_then(|gateway| gateway.arrive(&snapshot, asked)) {
            Ok(arrived) => arrived,
            Err(error) => return refused(error.detail()),
        };
        let mut answer = match &arrived.chain.seen.connections {
            Some(table) => arrived.connection(asked, table),
            None if asked.protocol == Protocol::Tcp => refused("the gateway takes requests here, and no other bytes"),
            None => {
                let answer = arrived.request(asked, compares.then_some(&*snapshot));
                answer.unwrap_or_else(|error| Answer::failed(&error))
            }
        };
        if arrived.chain.is_filtered {
            answer.notes.push("policies, limits and other filters of the gateway are not looked at here".to_owned());
        }
        answer.note_ineffective(asked, "a gateway goes by the port");
        answer
    }

    fn gateway(&mut self, called: &str) -> Result<&mut Gateway, MeshError> {
        if !self.gateways.contains_key(called) {
            if self.gateways.len() >= MOST_REMEMBERED {
                self.gateways.clear();
            }
            self.gateways.insert(called.to_owned(), Gateway::of(&self.snapshot, called));
        }
        let known = self.gateways.get_mut(called).expect("what was not known was learned");
        known.as_mut().map_err(|error| error.clone())
    }

    fn inbound(&mut self, asked: &Asked) -> Result<Answer, MeshError> {
        let bad = |what: String| MeshError::new(ErrorKind::BadRequest, what);
        let bound = match asked.address.as_deref() {
            None => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), asked.port),
            Some(text) => match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
                (Ok(bound), _) => bound,
                (_, Ok(ip)) => SocketAddr::new(ip, asked.port),
                _ => return Err(bad(format!("address: {text:?} is no IP address, alone or with a port"))),
            },
        };
        if self.servers.len() >= MOST_REMEMBERED {
            self.servers.clear();
        }
        let (snapshot, compares) = (Arc::clone(&self.snapshot), self.compares);
        let seen = match self.servers.entry((asked.source.clone(), bound)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(first) => first.insert(Seen::of_server(&self.snapshot, &client(&asked.source), bound)),
        };
        let seen = seen.as_ref().map_err(MeshError::clone)?;
        let head = as_its_server_sees_it(asked, seen)?;
        let explained =
            seen.table.explain(&RequestHead::with_authority(&head, &asked.host), &mut fastrand::Rng::with_seed(0));
        let Some(choice) = explained.route else {
            return Err(explained.error.unwrap_or_else(|| bad("there is no route".to_owned())));
        };
        let (route, virtual_host) = (choice.route.name.to_string(), explained.virtual_host);
        let mut answer = match &choice.route.action {
            RouteAction::NonForwarding => {
                let name = format!("inbound|{}||", bound.port());
                let service = Service { port: Some(bound.port()), ..Service::named(name) };
                let request = (asked.protocol != Protocol::Tcp).then(|| sent(&head, &asked.host));
                Answer { outcome: Outcome::Forward, clusters: vec![To::of(service, 1)], request, ..Answer::default() }
            }
            RouteAction::Direct(direct) => Answer {
                outcome: Outcome::Direct,
                status: Some(direct.status.as_u16()),
                reason: Some(String::from_utf8_lossy(&direct.body).into_owned()),
                ..Answer::default()
            },
            _ => return Err(bad("the route is not for a server".to_owned())),
        };
        if compares {
            answer.treatment = treatment_of_server(&snapshot, seen);
        }
        answer.route = Some(route);
        answer.virtual_host = virtual_host.map(|host| host.name.to_string());
        if seen.table.needs_verdict() || seen.table.authenticator().is_some() {
            answer.notes.push("who may do what is not looked at here, but by `authz test`".to_owned());
        }
        Ok(answer)
    }
}

/// The head of a request with the path that rules decide by, and the application gets.
fn as_its_server_sees_it(asked: &Asked, seen: &Seen) -> Result<Parts, MeshError> {
    let bad = |what: String| MeshError::new(ErrorKind::BadRequest, what);
    let mut head = asked.head.clone();
    if head.method != Method::CONNECT {
        let before = RequestHead::with_authority(&asked.head, &asked.host);
        let path = canonical(&before, seen.paths, &seen.table)?;
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        uri.path_and_query = Some(PathAndQuery::try_from(path).map_err(|error| bad(error.to_string()))?);
        head.uri = Uri::from_parts(uri).map_err(|error| bad(error.to_string()))?;
    }
    Ok(head)
}

/// A gateway, as far as it was asked about.
struct Gateway {
    client: Client,
    /// By the port that clients know.
    listeners: HashMap<u16, Result<GatewayListener, MeshError>>,
}

/// A listener of a gateway, and the chains that clients came in by, by their places.
struct GatewayListener {
    entrance: Entrance,
    chains: HashMap<usize, Result<GatewayChain, MeshError>>,
}

/// A chain of a gateway.
struct GatewayChain {
    seen: Seen,
    /// Its routes without what lets requests in or not.
    routes: RouteTable,
    /// Whether that leaves anything out.
    is_filtered: bool,
}

/// Where a client has come in.
struct Arrived<'g> {
    client: &'g Client,
    entrance: &'g Entrance,
    place: usize,
    chain: &'g GatewayChain,
}

impl Gateway {
    fn of(snapshot: &Snapshot, called: &str) -> Result<Gateway, MeshError> {
        let unknown = |why: &str| MeshError::new(ErrorKind::UnknownTarget, format!("gateway {called}: {why}"));
        let WorkloadName { namespace, name } = called.parse::<WorkloadName>().map_err(|why| unknown(&why))?;
        let Some((namespace, labels)) = snapshot.gateway_named(&namespace, &name) else {
            return Err(unknown("no Gateway is called so, and none selects a workload of this name"));
        };
        let workload = Workload { namespace: namespace.to_string(), labels };
        Ok(Gateway { client: gateway(&workload), listeners: HashMap::new() })
    }

    fn arrive(&mut self, snapshot: &Snapshot, asked: &Asked) -> Result<Arrived<'_>, MeshError> {
        let client = &self.client;
        let listener = self.listeners.entry(asked.port);
        let listener = listener.or_insert_with(|| GatewayListener::of(snapshot, client, asked.port));
        let GatewayListener { entrance, chains } = match listener {
            Ok(listener) => listener,
            Err(error) => return Err(error.clone()),
        };
        let entrance = &*entrance;
        // Nobody asks for an address by name (RFC 6066, 3).
        let is_address = |name: &str| name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let place = entrance.place(asked.is_tls, asked.server_name().filter(|name| !is_address(name)))?;
        let chain = chains.entry(place).or_insert_with(|| GatewayChain::of(snapshot, client, entrance, place));
        let chain = chain.as_ref().map_err(MeshError::clone)?;
        Ok(Arrived { client, entrance, place, chain })
    }
}

impl GatewayListener {
    fn of(snapshot: &Snapshot, client: &Client, port: u16) -> Result<GatewayListener, MeshError> {
        let (name, _) = listener_for(snapshot, client, port)?;
        Ok(GatewayListener { entrance: Entrance::of(snapshot, client, &name)?, chains: HashMap::new() })
    }
}

impl GatewayChain {
    fn of(snapshot: &Snapshot, client: &Client, entrance: &Entrance, place: usize) -> Result<GatewayChain, MeshError> {
        let mut seen = entrance.seen(snapshot, client, place)?;
        seen.learn_all(snapshot, client)?;
        let (routes, is_filtered) = entrance.routes_alone(&seen, place)?;
        Ok(GatewayChain { seen, routes, is_filtered })
    }
}

impl Arrived<'_> {
    /// What becomes of a request; `compared_in` is where it is looked up how it is treated, if that is of interest.
    fn request(&self, asked: &Asked, compared_in: Option<&Snapshot>) -> Result<Answer, MeshError> {
        let GatewayChain { seen, routes, .. } = self.chain;
        let head = as_its_server_sees_it(asked, seen)?;
        let view = RequestHead::with_authority(&head, &asked.host);
        let (position, route, chosen) = match routes.find(&view, &mut fastrand::Rng::with_seed(0)) {
            Err(error)
                if error.kind() == ErrorKind::NoRoute
                    && self.entrance.is_misdirected(self.place, asked.is_tls, &asked.name) =>
            {
                let why = format!("{} has TLS of its own, and the connection is for another name", asked.name);
                let status = Some(StatusCode::MISDIRECTED_REQUEST.as_u16());
                return Ok(Answer { status, reason: Some(why), ..Answer::default() });
            }
            found => found?,
        };
        let mut answer = Decided { asked, head: &head, seen, table: routes, position, route }.answer(chosen);
        if let Some(snapshot) = compared_in.filter(|_| answer.outcome == Outcome::Forward) {
            answer.treatment = treatment(snapshot, self.client, seen, &view);
        }
        Ok(answer)
    }

    /// What becomes of a connection that nobody looks into.
    fn connection(&self, asked: &Asked, table: &RouteTable) -> Answer {
        let head = RequestHead::with_authority(&asked.head, &asked.host);
        let mut answer = match table.find(&head, &mut fastrand::Rng::with_seed(0)) {
            Ok((position, route, chosen)) => {
                let seen = &self.chain.seen;
                Decided { asked, head: &asked.head, seen, table, position, route }.answer(chosen)
            }
            Err(error) => Answer::failed(&error),
        };
        // There are no hosts in bytes, and nobody answers them.
        (answer.request, answer.status, answer.virtual_host) = (None, None, None);
        if answer.clusters.iter().any(|to| to.service.name == BLACK_HOLE) {
            answer.clusters.clear();
            answer.reason =
                Some("such connections are closed: no rule takes them, or what they need is missing".to_owned());
        }
        if answer.outcome == Outcome::Forward {
            answer.notes.push(OPAQUE.to_owned());
        }
        answer
    }
}

/// Why no rule on connections takes one.
fn no_connection(error: MeshError, name: &str) -> MeshError {
    if error.kind() != ErrorKind::NoRoute {
        return error;
    }
    let what = match name {
        "" => "its rules are for TLS connections by the name of their server, and none is said".to_owned(),
        name => format!("no rule on TLS connections is for the server name {name:?}"),
    };
    MeshError::new(ErrorKind::NoRoute, what)
}

/// What became of a request in the filters of its route.
struct Passed {
    /// It is answered there.
    reply: Option<Reply>,
    head: Parts,
    /// What they add to answers.
    answer_headers: HeaderMap,
}

/// So many draws are made to find one by which a fault that is for some requests only is for others.
const DRAWS: u64 = 256;

/// A request whose route is known.
struct Decided<'d> {
    asked: &'d Asked,
    /// Its head, as it is decided by.
    head: &'d Parts,
    seen: &'d Seen,
    table: &'d RouteTable,
    position: RoutePosition,
    route: &'d Route,
}

impl Decided<'_> {
    fn answer(&self, chosen: &Destination) -> Answer {
        let Decided { asked, table, position, route, .. } = self;
        let virtual_host = table.virtual_host(*position).map(|host| host.name.to_string());
        let mut answer = Answer { route: Some(route.name.to_string()), virtual_host, ..Answer::default() };
        let fault = table.fault_of(*position);
        let of_fault = fault.and_then(|fault| noted(fault, &mut answer.notes));
        let passed = self.pass(chosen, fault);
        if let Some(reply) = &passed.reply {
            answer.outcome = Outcome::Direct;
            answer.status = Some(reply.status.as_u16());
            answer.reason = Some(of_fault.unwrap_or_else(|| "the mesh answers preflights (corsPolicy)".to_owned()));
            let effects = response_changes(reply.status, &passed.answer_headers, chosen.response_changes());
            (answer.response_headers, answer.response_headers_removed) = effects;
            return answer;
        }
        let head = RequestHead::with_authority(self.head, &asked.host);
        match &route.action {
            RouteAction::Forward(forward) => self.forward(forward, &passed, &mut answer),
            RouteAction::Redirect(redirect) => match location(redirect, &route.matches, &head) {
                Ok(location) => {
                    answer.outcome = Outcome::Redirect;
                    (answer.status, answer.location) = (Some(redirect.status.as_u16()), Some(location));
                }
                Err(error) => answer.fails(&error),
            },
            RouteAction::Direct(direct) => {
                answer.outcome = Outcome::Direct;
                answer.status = Some(direct.status.as_u16());
                answer.reason = (!direct.body.is_empty()).then(|| String::from_utf8_lossy(&direct.body).into_owned());
            }
            RouteAction::Unusable(reason) => answer.fails(&MeshError::new(ErrorKind::NoRoute, Arc::clone(reason))),
            RouteAction::NonForwarding => {
                answer.fails(&MeshError::new(ErrorKind::NoRoute, "the route is for a server and leads nowhere"));
            }
        }
        if matches!(answer.outcome, Outcome::Redirect | Outcome::Direct) {
            let status = answer.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or_default();
            let effects = response_changes(status, &passed.answer_headers, chosen.response_changes());
            (answer.response_headers, answer.response_headers_removed) = effects;
        }
        answer
    }

    /// Passes the filters of a route. A fault that is not for all requests is for others.
    fn pass(&self, chosen: &Destination, fault: Option<&Arc<Fault>>) -> Passed {
        let filters = chosen.filters();
        let abort = fault.and_then(|fault| fault.abort.as_ref()).filter(|abort| abort.fraction != Fraction::ALL);
        let is_for_some = |reply: &Reply| {
            abort.is_some_and(|abort| match (abort.http_status, abort.grpc_code) {
                (Some(status), _) => status == reply.status.as_u16(),
                (None, code) => code.is_some() && code == reply.grpc_code,
            })
        };
        let mut draw = 0;
        loop {
            let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(draw));
            info.is_grpc = self.asked.protocol == Protocol::Grpc;
            let (mut head, mut reply, mut entered) = (self.head.clone(), None, 0);
            for filter in filters {
                entered += 1;
                match filter.on_request(&mut info, &mut head) {
                    Decision::Continue | Decision::Delay(_, None) | Decision::Callout(_) => {}
                    Decision::Reply(answer) | Decision::Delay(_, Some(answer)) => {
                        reply = Some(answer);
                        break;
                    }
                }
            }
            draw += 1;
            if reply.as_ref().is_some_and(is_for_some) && draw < DRAWS {
                continue;
            }
            let (mut answer, ()) = Response::new(()).into_parts();
            for filter in filters.iter().take(entered).rev() {
                filter.on_response(&mut info, &mut answer);
            }
            return Passed { reply, head, answer_headers: answer.headers };
        }
    }

    fn refuse_tls(&self, answer: &mut Answer) {
        if answer.outcome == Outcome::Forward && !self.seen.passes_through(self.table) {
            answer.request = None;
            answer.fails(&not_by_tls());
        }
    }

    fn forward(&self, forward: &Forward, passed: &Passed, answer: &mut Answer) {
        let Decided { asked, seen, table, position, route, .. } = self;
        let names = table.clusters();
        let mut all: Vec<(&str, u32, Effects)> = Vec::new();
        for destination in table.destinations(*position) {
            let Some(name) = destination.cluster().and_then(|at| names.get(at)) else { continue };
            let mut head = passed.head.clone();
            let (changes, own) = (destination.request_changes(), destination.authority());
            if let Err(error) = rewrite(&mut head, changes, own, forward, &route.matches) {
                return answer.fails(&error);
            }
            let changes = destination.response_changes();
            let (response_headers, removed) = response_changes(StatusCode::OK, &passed.answer_headers, changes);
            let effects = Effects { request: sent(&head, &asked.host), response_headers, removed };
            // A sticky split has several parts of one cluster.
            match all.iter_mut().find(|(known, _, of_known)| *known == name.as_str() && *of_known == effects) {
                Some((_, weight, _)) => *weight = weight.saturating_add(destination.weight()),
                None => all.push((name.as_str(), destination.weight(), effects)),
            }
        }
        let problems: Vec<&str> = all
            .iter()
            .filter_map(|(name, ..)| match seen.clusters.get(*name)? {
                Told::Nowhere(why) => Some(why.as_str()),
                Told::Leaves(_) => None,
            })
            .collect();
        answer.outcome = Outcome::Forward;
        if !problems.is_empty() {
            answer.reason = Some(problems.join("; "));
            if problems.len() == all.len() {
                answer.outcome = Outcome::Error;
                answer.status = Some(ErrorKind::NoHealthyEndpoint.http_status().as_u16());
            }
        }
        if forward.split_by == SplitBy::HashPolicies {
            let plain = plain_weights(&all.iter().map(|(_, weight, _)| *weight).collect::<Vec<_>>());
            all.iter_mut().zip(plain).for_each(|((_, weight, _), plain)| *weight = plain);
        }
        let service = |name: &str| self.service(name);
        let first = all.first().map(|(.., effects)| effects.clone());
        answer.clusters = all
            .into_iter()
            .map(|(name, weight, effects)| {
                let mut to = To::of(service(name), weight);
                if let Some(first) = first.as_ref().filter(|first| **first != effects) {
                    to.request = (first.request != effects.request).then_some(effects.request);
                    to.response_headers =
                        (first.response_headers != effects.response_headers).then_some(effects.response_headers);
                    to.response_headers_removed = (first.removed != effects.removed).then_some(effects.removed);
                }
                to
            })
            .collect();
        if let Some(Effects { request, response_headers, removed }) = first {
            answer.request = Some(request);
            (answer.response_headers, answer.response_headers_removed) = (response_headers, removed);
        }
        let mirrors = forward.mirrors.iter().map(|Mirror { cluster, fraction, .. }| Mirrored {
            service: service(cluster.as_str()),
            percent: f64::from(fraction.per_million()) / 10_000.0,
        });
        answer.mirrors = mirrors.collect();
    }

    /// What a cluster is of.
    fn service(&self, name: &str) -> Service {
        let Decided { asked, seen, .. } = self;
        let told = seen.clusters.get(name);
        if told.is_some_and(Told::passes_through) {
            let host = Some(asked.name.clone());
            return Service { host, port: Some(asked.port), ..Service::named(name.to_owned()) };
        }
        let Some(key) = ClusterKey::parse(name).or_else(|| FallbackName::parse(name)) else {
            return Service::named(name.to_owned());
        };
        let mut of = Service::named(name.to_owned());
        of.port = Some(key.port);
        of.subset = (!key.subset.is_empty()).then(|| key.subset.to_string());
        let known = told.and_then(|told| told.leaves().first()?.service.as_deref());
        match known {
            // The name of a service and its host go together; a ServiceEntry has hosts of its own.
            Some(known) if known.host.starts_with(&format!("{}.{}.svc.", known.name, known.namespace)) => {
                (of.service, of.namespace) = (Some(known.name.to_string()), Some(known.namespace.to_string()));
            }
            _ => {
                let mut parts = key.host.splitn(4, '.');
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    (Some(service), Some(namespace), Some("svc"), Some(_)) => {
                        (of.service, of.namespace) = (Some(service.to_owned()), Some(namespace.to_owned()));
                    }
                    _ => {
                        of.host = Some(key.host.to_string());
                        of.namespace = known.map(|known| known.namespace.to_string());
                    }
                }
            }
        }
        of
    }
}

impl Answer {
    /// What it says in one of its fields, for people.
    pub(super) fn said(&self, field: &str) -> Option<String> {
        match (field, self.clusters.as_slice()) {
            ("clusters", []) => None,
            ("clusters", [To { service, request: None, response_headers: None, .. }]) => Some(service.to_string()),
            ("clusters", several) => {
                let several = several.iter().map(|to| match (&to.request, &to.response_headers) {
                    (None, None) => format!("{} (weight {})", to.service, to.weight),
                    _ => serde_json::to_string(to).unwrap_or_default(),
                });
                Some(several.collect::<Vec<_>>().join(", "))
            }
            _ => match serde_json::to_value(self).ok()?.get(field)? {
                serde_json::Value::String(text) => Some(text.clone()),
                value => Some(value.to_string()),
            },
        }
    }

    /// Leaves out how both are treated alike: that is much.
    pub(super) fn leave_out_same_treatment(&mut self, other: &mut Answer) {
        let (one, two) = (self.treatment.clone(), &mut other.treatment);
        self.treatment.retain(|name, value| two.get(name) != Some(&*value));
        two.retain(|name, value| one.get(name) != Some(&*value));
    }

    /// Notes what of a line has no effect, as an address has not for this reason.
    fn note_ineffective(&mut self, asked: &Asked, why_no_address: &str) {
        if asked.address.is_some() {
            self.notes.push(format!("address has no effect: {why_no_address}"));
        }
        if asked.alpn {
            self.notes.push("alpn has no effect: no rule goes by it".to_owned());
        }
        if asked.sni.is_some() && !asked.is_tls {
            self.notes.push("sni has no effect without tls".to_owned());
        }
    }

    fn fails(&mut self, error: &MeshError) {
        self.outcome = Outcome::Error;
        self.status = Some(error.kind().http_status().as_u16());
        self.reason = Some(error.detail().to_owned());
    }
}

impl Service {
    fn named(name: String) -> Service {
        Service { service: None, host: None, namespace: None, port: None, subset: None, name }
    }
}

impl To {
    fn of(service: Service, weight: u32) -> To {
        To { service, weight, request: None, response_headers: None, response_headers_removed: None }
    }
}

/// What a destination makes of a request and of its answer.
#[derive(Clone, PartialEq)]
struct Effects {
    request: Sent,
    response_headers: BTreeMap<String, Values>,
    removed: Vec<String>,
}

fn sent(head: &Parts, host: &str) -> Sent {
    let mut headers = values(&head.headers);
    let host = match headers.remove(HOST.as_str()) {
        Some(Values::One(host)) => host,
        _ => host.to_owned(),
    };
    Sent { path: head.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(), host, headers }
}

fn values(headers: &HeaderMap) -> BTreeMap<String, Values> {
    let values = headers.keys().map(|name| {
        let all: Vec<String> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        let values = match <[String; 1]>::try_from(all) {
            Ok([only]) => Values::One(only),
            Err(all) => Values::Several(all),
        };
        (name.as_str().to_owned(), values)
    });
    values.collect()
}

/// What filters and changes make of an answer without headers, and what they take off any other.
fn response_changes(
    status: StatusCode,
    of_filters: &HeaderMap,
    changes: &[Vec<HeaderChange>],
) -> (BTreeMap<String, Values>, Vec<String>) {
    if changes.is_empty() && of_filters.is_empty() {
        return (BTreeMap::new(), Vec::new());
    }
    let (mut head, ()) = Response::new(()).into_parts();
    (head.status, head.headers) = (status, of_filters.clone());
    apply_to_response(changes, &mut head);
    let removed = changes.iter().flatten().filter_map(|change| match change {
        HeaderChange::Remove(name) if !head.headers.contains_key(name) => Some(name.to_string()),
        _ => None,
    });
    (values(&head.headers), removed.collect())
}

/// Notes what a fault makes of some requests; what it answers, where that is the answer to all of them.
fn noted(fault: &Fault, notes: &mut Vec<String>) -> Option<String> {
    let percent = |fraction: Fraction| f64::from(fraction.per_million()) / 10_000.0;
    if let Some(delay) = &fault.delay
        && let Some(pause) = delay.duration
    {
        notes.push(format!("a fault holds {} % of such requests back for {pause:?}", percent(delay.fraction)));
    }
    let abort = fault.abort.as_ref()?;
    let with = match (abort.http_status, abort.grpc_code) {
        (Some(status), _) => format!("status {status}"),
        (None, Some(code)) => format!("gRPC status {code}"),
        (None, None) => return None,
    };
    if abort.fraction == Fraction::ALL {
        return Some(format!("a fault answers every such request with {with}"));
    }
    notes.push(format!("a fault answers {} % of such requests with {with}", percent(abort.fraction)));
    None
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.service, &self.host, &self.namespace) {
            (Some(service), _, Some(namespace)) => write!(f, "{service}.{namespace}")?,
            (_, Some(host), _) => f.write_str(host)?,
            _ => return f.write_str(&self.name),
        }
        self.port.iter().try_for_each(|port| write!(f, ":{port}"))?;
        self.subset.iter().try_for_each(|subset| write!(f, " subset {subset}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Forward => "forward",
            Outcome::Redirect => "redirect",
            Outcome::Direct => "direct",
            Outcome::Error => "error",
        };
        match &self.id {
            serde_json::Value::Null => {}
            // Whoever writes the requests writes no lines of the report.
            serde_json::Value::String(id) if id.chars().any(char::is_control) => write!(f, "{id:?}: ")?,
            serde_json::Value::String(id) => write!(f, "{id}: ")?,
            id => write!(f, "{id}: ")?,
        }
        f.write_str(outcome)?;
        self.status.iter().try_for_each(|status| write!(f, " {status}"))?;
        let several = self.clusters.len() > 1;
        for (at, To { service, weight, .. }) in self.clusters.iter().enumerate() {
            write!(f, "{} {service}", if at == 0 { "" } else { "," })?;
            if several {
                write!(f, " (weight {weight})")?;
            }
        }
        if let Some(Sent { path, host, .. }) = &self.request {
            write!(f, " as {host}{path}")?;
        }
        self.location.iter().try_for_each(|location| write!(f, " to {location}"))?;
        self.reason.iter().try_for_each(|reason| write!(f, ": {reason}"))?;
        self.notes.iter().try_for_each(|note| write!(f, "\n  note: {note}"))
    }
}
