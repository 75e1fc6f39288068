//! A tour of routing: traffic goes through bookinfo while one configuration after another comes into force, and what
//! the traffic sees is compared with what the files say.

mod meaning;
mod report;
mod tally;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mesh_control::config::diagnostic::{Code, Diagnostic};
use mesh_core::request::RequestHead;
use mesh_tower::{Client, Mesh};

use super::application::Bookinfo;
use super::manifests::{self, Joined, Phase};
use super::onward::Leg;
use super::productpage::{Product, product};
use super::service::App;
use crate::load::{self, Pace};
use crate::stats::Latencies;

pub use meaning::{Expectation, Meaning, NotUnderstood, Outcome};
pub use report::{Human, Json, Reporter};
pub use tally::Tally;

/// How long the traffic waits for a page.
const BUDGET: Duration = Duration::from_secs(10);
/// How long traffic goes on before a phase's files come into force: the change happens under load.
const BEFORE: Duration = Duration::from_millis(200);
/// How long a configuration may take to reach every service.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name of the text of a phase; sorts after that of the services below it.
const OVERLAY: &str = "overlay.yaml";
/// For how long a service may fall back on what it knew: the xDS client remembers for 5 s what it gave up, and uses it
/// until it is told better.
const MEMORY: Duration = Duration::from_secs(6);

/// Who the traffic is from: one of four pages is for `jason`.
const USERS: [Option<&str>; 4] = [None, None, None, Some("jason")];

/// How a tour is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pages a second.
    pub rate: f64,
    /// How long each phase is looked at once it is in force.
    pub phase: Duration,
    /// Whether everything in the files must be understood and in force. Otherwise it may also be reported as not
    /// supported yet.
    pub strict: bool,
}

/// What became of one phase.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Its name.
    pub name: String,
    /// Pages that were asked for while it was in force.
    pub pages: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// For how long it was looked at.
    pub time: Duration,
    /// From the change until every service had confirmed it.
    pub settled: Duration,
    /// How long the pages took.
    pub latencies: Latencies,
    /// What each service was seen to do, by service and user.
    pub seen: Seen,
    /// What it should do; nothing where that is not understood.
    pub expected: BTreeMap<Edge, Expectation>,
    /// Hosts outside of bookinfo that the files speak of, and where calls to them go now.
    pub foreign: Vec<(String, Result<String, String>)>,
    /// What the control plane says of the files.
    pub reports: Vec<Diagnostic>,
    /// What is wrong.
    pub problems: Vec<String>,
}

impl Outlook {
    /// Whether everything is as it should be.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A service, and on behalf of whom it is called.
pub type Edge = (App, Option<&'static str>);

/// What was seen of each service.
pub type Seen = BTreeMap<Edge, Tally>;

/// A page that was asked for.
struct Record {
    started: Instant,
    user: Option<&'static str>,
    page: Leg,
    product: Option<Product>,
}

impl Record {
    async fn make(client: Client, user: Option<&'static str>) -> Record {
        let started = Instant::now();
        let (page, product) = product(&client, user, BUDGET).await;
        Record { started, user, page, product }
    }

    /// The calls that it took, and on behalf of whom.
    fn calls(&self) -> Vec<(App, Option<&'static str>, Leg)> {
        let mut calls = vec![(App::Productpage, self.user, self.page.clone())];
        if let Some(product) = &self.product {
            calls.push((App::Details, self.user, product.details.call.clone()));
            calls.push((App::Reviews, self.user, product.reviews.call.clone()));
            calls.extend(product.ratings().map(|ratings| (App::Ratings, self.user, ratings)));
        }
        calls
    }
}

/// Makes a tour. Returns what became of each phase.
///
/// # Errors
/// If traffic cannot be made, or nobody reads the report.
pub async fn run(
    bookinfo: &Bookinfo,
    phases: &[Phase],
    options: Options,
    reporter: &mut dyn Reporter,
) -> anyhow::Result<Vec<Outlook>> {
    let mesh = bookinfo.caller("traffic")?;
    let mut before = VecDeque::<Past>::new();
    let mut outlooks = Vec::new();
    for phase in phases {
        reporter.begin(&phase.name)?;
        let outlook = visit(bookinfo, &mesh, phase, options, &before, reporter).await?;
        reporter.end(&outlook)?;
        while before.front().is_some_and(|past| past.ended.elapsed() > MEMORY) {
            before.pop_front();
        }
        before.push_back(Past { expected: outlook.expected.clone(), ended: Instant::now() });
        outlooks.push(outlook);
    }
    reporter.summary(&outlooks)?;
    Ok(outlooks)
}

/// What was expected in an earlier phase, and until when.
struct Past {
    expected: BTreeMap<Edge, Expectation>,
    ended: Instant,
}

/// Puts one phase in force and looks at it.
async fn visit(
    bookinfo: &Bookinfo,
    mesh: &Mesh,
    phase: &Phase,
    options: Options,
    before: &VecDeque<Past>,
    reporter: &mut dyn Reporter,
) -> anyhow::Result<Outlook> {
    let own = Meaning::of(&[&phase.joined().text]);
    let joined = with_probe(phase).joined();
    let meaning = Meaning::of(&[&manifests::base(), &joined.text]);
    let mut outlook = Outlook::of(&phase.name, options.phase, meaning.as_ref().ok());
    let in_force: Arc<OnceLock<Instant>> = Arc::default();
    let change = async {
        tokio::time::sleep(BEFORE).await;
        let reports = apply(bookinfo, &joined);
        let changed = Instant::now();
        until_confirmed(bookinfo).await;
        in_force.get_or_init(Instant::now);
        let settled = changed.elapsed();
        tokio::time::sleep(options.phase).await;
        (reports, settled)
    };
    tokio::pin!(change);
    let mut changed = None;
    let mut transition = Vec::new();
    let pace = Pace { count: None, time: None, rate: Some(options.rate), concurrency: 10_000 };
    let client = mesh.client();
    let call = |number: u64, _| Record::make(client.clone(), USERS[number as usize % USERS.len()]);
    let each = |record: Record| {
        if in_force.get().is_none_or(|since| record.started < *since) {
            return transition.push(record);
        }
        outlook.add(&record);
        reporter.progress(&outlook);
    };
    let stop = async { changed = Some(change.as_mut().await) };
    load::run(&pace, stop, call, each).await;
    (outlook.reports, outlook.settled) = changed.unwrap_or_default();
    match (meaning, own) {
        (Ok(meaning), Ok(own)) => {
            outlook.foreign = foreign(mesh, &meaning).await;
            outlook.compare(&meaning, options.strict);
            outlook.account_for(&own, options.strict);
            outlook.look_at_transition(&transition, before);
        }
        // A text that is wrong changes nothing, and must be reported.
        (Err(wrong), _) | (_, Err(wrong)) => {
            if outlook.reports.is_empty() || options.strict {
                outlook.problems.push(wrong.0);
            }
        }
    }
    Ok(outlook)
}

/// Puts the texts of a phase in force. Returns what the control plane says of them, in the words of the phase's own
/// files.
fn apply(bookinfo: &Bookinfo, joined: &Joined) -> Vec<Diagnostic> {
    let embedded = bookinfo.embedded();
    let rejected = embedded.set_yaml(OVERLAY, &joined.text).err();
    let mut reports = rejected.map(|rejected| rejected.diagnostics).unwrap_or_default();
    for finding in embedded.plane().diagnostics() {
        // That a phase's object takes the place of one of the base is the point of a phase.
        if &*finding.file == OVERLAY && finding.code != Code::Duplicate && !reports.contains(&finding) {
            reports.push(finding);
        }
    }
    for report in &mut reports {
        if let Some((file, line)) = joined.place(report.line as usize) {
            report.file = file.into();
            report.line = u32::try_from(line).unwrap_or(u32::MAX);
        }
    }
    reports
}

/// Waits until every client of the control plane has confirmed all that it was sent, and a little longer: a client
/// that has just confirmed a route asks for the clusters of that route next.
async fn until_confirmed(bookinfo: &Bookinfo) {
    let started = Instant::now();
    let mut calm = 0;
    while calm < 4 && started.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = bookinfo.embedded().status();
        let busy = status.clients.iter().flat_map(|client| &client.kinds);
        let busy = busy.filter(|kind| kind.unsent > 0 || kind.pending_seconds.is_some()).count();
        calm = if busy == 0 { calm + 1 } else { 0 };
    }
}

/// The phase, and for services that it has subsets for and no routes, routes that spread calls over these subsets:
/// they show what the subsets are for.
fn with_probe(phase: &Phase) -> Phase {
    let mut phase = phase.clone();
    let Ok(meaning) = Meaning::of(&[&phase.joined().text]) else { return phase };
    let mut routes = String::new();
    for app in App::ALL {
        let subsets = meaning.running_subsets(app);
        if !subsets.is_empty() && !meaning.has_route(app) {
            let weight = |position: usize| 100 / subsets.len() + usize::from(position < 100 % subsets.len());
            let routed = subsets.iter().enumerate().map(|(position, subset)| {
                format!("{{destination: {{host: {app}, subset: {subset}}}, weight: {}}}", weight(position))
            });
            routes.push_str(&format!(
                "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: probe-{app}}}\n\
                 spec: {{hosts: [{app}], http: [{{route: [{}]}}]}}\n",
                routed.collect::<Vec<_>>().join(", "),
            ));
        }
    }
    if !routes.is_empty() {
        phase.files.push(("(subsets, routed to)".to_owned(), routes));
    }
    phase
}

/// Where calls to hosts outside of bookinfo go. Nothing is sent to them.
async fn foreign(mesh: &Mesh, meaning: &Meaning) -> Vec<(String, Result<String, String>)> {
    let mut found = Vec::new();
    for (host, port) in meaning.foreign_hosts().into_keys() {
        let authority = format!("{host}:{port}");
        found.push((authority.clone(), explain(mesh, &authority).await));
    }
    found
}

async fn explain(mesh: &Mesh, authority: &str) -> Result<String, String> {
    let target = mesh.store().target(authority).map_err(|error| format!("{error:#}"))?;
    let view = target.wait(Instant::now() + PATIENCE).await.map_err(|error| format!("{error:#}"))?;
    let (parts, ()) = http::Request::new(()).into_parts();
    let head = RequestHead::with_authority(&parts, authority);
    let routed = view.find(&head, &mut fastrand::Rng::new()).map_err(|error| format!("{error:#}"))?;
    Ok(routed.cluster.map_or_else(|| "an answer of the mesh".to_owned(), |cluster| cluster.name().to_string()))
}

impl Outlook {
    /// Nothing seen yet.
    fn of(phase: &str, time: Duration, meaning: Option<&Meaning>) -> Outlook {
        let edges = App::ALL.into_iter().flat_map(|app| USERS.map(|user| (app, user)));
        let expected = |edge: Edge| Some((edge, meaning?.expect(edge.0, edge.1).ok()?));
        Outlook {
            name: phase.to_owned(),
            pages: 0,
            failed: 0,
            time,
            settled: Duration::ZERO,
            latencies: Latencies::default(),
            seen: Seen::new(),
            expected: edges.filter_map(expected).collect(),
            foreign: Vec::new(),
            reports: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn add(&mut self, record: &Record) {
        self.pages += 1;
        self.failed += u64::from(!record.page.is_ok());
        self.latencies.add(Duration::from_secs_f64(record.page.ms.max(0.0) / 1e3));
        for (app, user, leg) in record.calls() {
            self.seen.entry((app, user)).or_default().add(app, &leg);
        }
    }

    /// Compares what was seen with what the files mean.
    fn compare(&mut self, meaning: &Meaning, strict: bool) {
        let users: BTreeSet<_> = USERS.into_iter().collect();
        for app in App::ALL {
            // What is reported as not supported yet need not be as the files say; but it must never be weaker.
            let excused =
                !strict && !meaning.is_closed(app) && meaning.about(app).iter().any(|id| self.is_reported(id));
            if excused {
                continue;
            }
            for user in &users {
                let problems = match meaning.expect(app, *user) {
                    Ok(_) => self.look_at((app, *user)),
                    Err(what) => vec![format!("{} is not understood here", what.0)],
                };
                self.problems.extend(problems.into_iter().map(|problem| format!("{app}: {problem}")));
            }
        }
        if self.pages == 0 {
            self.problems.push("no page was asked for".to_owned());
        }
    }

    fn look_at(&self, edge: Edge) -> Vec<String> {
        let (Some(expected), Some(seen)) = (self.expected.get(&edge), self.seen.get(&edge)) else {
            return Vec::new();
        };
        let for_whom = edge.1.map(|user| format!("for {user}, ")).unwrap_or_default();
        let mut problems: Vec<String> =
            seen.problems(expected).into_iter().map(|problem| format!("{for_whom}{problem}")).collect();
        if expected.delay.is_none() {
            let others = self.expected.iter().filter(|((app, _), _)| *app == edge.0);
            for (_, time) in others.filter_map(|(_, expected)| expected.delay) {
                if seen.is_as_slow_as(time) {
                    problems.push(format!("{for_whom}calls take {time:?}, which only others should"));
                }
            }
        }
        problems
    }

    /// Every object must have an effect that was seen, or be reported.
    fn account_for(&mut self, own: &Meaning, strict: bool) {
        let foreign: BTreeSet<String> = own.foreign_hosts().into_values().flatten().collect();
        for (object, is_seen) in own.objects() {
            if !is_seen && !foreign.contains(&object) && !self.is_reported(&object) {
                self.problems.push(format!("{object} has no effect, and nothing says so"));
            }
        }
        for (authority, route) in &self.foreign {
            let objects =
                own.foreign_hosts().into_iter().find(|((host, port), _)| *authority == format!("{host}:{port}"));
            let reported = objects.is_some_and(|(_, objects)| objects.iter().any(|object| self.is_reported(object)));
            if let Err(error) = route
                && !reported
            {
                self.problems.push(format!("{authority}: {error}"));
            }
        }
        if strict {
            let unexpected = self.reports.iter().map(|report| format!("the control plane reports {report}"));
            self.problems.extend(unexpected);
        }
    }

    /// While a change travels, each call must end as the old files allow, or the new ones.
    fn look_at_transition(&mut self, records: &[Record], before: &VecDeque<Past>) {
        let mut wrong = BTreeMap::<String, (u64, Option<String>)>::new();
        for (app, user, leg) in records.iter().flat_map(Record::calls) {
            let edge = (app, user);
            let mut old = before.iter().filter_map(|past| past.expected.get(&edge)).peekable();
            let (true, Some(new)) = (old.peek().is_some(), self.expected.get(&edge)) else { continue };
            if !old.chain([new]).any(|expected| tally::is_possible(expected, app, &leg)) {
                let who = leg.backend.unwrap_or_else(|| format!("failed {}", leg.status));
                let entry = wrong.entry(format!("{app}: during the change, {who}")).or_default();
                *entry = (entry.0 + 1, leg.error);
            }
        }
        for (what, (times, error)) in wrong {
            let error = error.map(|error| format!(": {error}")).unwrap_or_default();
            self.problems.push(format!("{what} for {times} calls{error}"));
        }
    }

    /// Whether the control plane says that an object, or a part of it, has no effect.
    fn is_reported(&self, object: &str) -> bool {
        let without_effect = |report: &&Diagnostic| {
            matches!(report.code, Code::NotSupportedYet | Code::NeedsCertificates | Code::Ignored)
                || report.rejects_object()
        };
        self.reports.iter().filter(without_effect).any(|report| report.object.as_deref() == Some(object))
    }
}
