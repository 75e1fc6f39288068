//! Who can be asked to follow live requests, what is followed now, and for whom. Orders last as long as somebody waits for what
//! comes of them; what a workload tells of no order is dropped.
//!
//! All are asked to go on with a trace before anybody is asked to begin it. Else the first request would pass processes that do not
//! know its mark yet, and what these saw would be missing.
//!
//! Workloads may lie: nobody begins a trace, or knows what is looked for, who was not asked to begin it, and what one tells, and all
//! together, has its bounds here, whatever theirs are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::live_trace::{LARGEST_HOP, MOST_EVENTS, MOST_HOPS, MOST_ORDERS};
use mesh_core::xds::live_trace::{Orders, WireOrder};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::catalog::Client;
use crate::explain::workload::WorkloadName;
use crate::live_trace::{Wanted, is_first};

/// So many hops wait for whoever asked; what else comes is dropped.
const MOST_WAITING: usize = 1024;
/// So many bytes of hops are taken for one trace, and of one process.
const MOST_BYTES: usize = 4 << 20;
const MOST_BYTES_OF_ONE: usize = 1 << 20;
/// Each hop is told once before it is over, and once when it is.
const MOST_OF_ONE: usize = 2 * MOST_HOPS as usize;
/// So long those are waited for who have not said yet that they follow, before a trace begins.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest name of a workload or a node that stands with what it tells.
const LONGEST_NAME: usize = 253;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Following {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// How often anybody was told.
    serial: u64,
    workloads: BTreeMap<u64, Workload>,
    traces: BTreeMap<u64, Trace>,
}

struct Workload {
    client: Arc<Client>,
    name: String,
    orders: watch::Sender<Orders>,
}

struct Trace {
    wanted: Wanted,
    whose: Option<WorkloadName>,
    until: Instant,
    hops: mpsc::Sender<Told>,
    /// Who has not said yet that it follows, of those who were there; nobody begins before. Once it has begun, nobody.
    waits_for: BTreeSet<u64>,
    /// The telling that they have to have heard.
    serial: u64,
    /// How many hops were told, and bytes of them, by process.
    told: BTreeMap<u64, (usize, usize)>,
}

impl Trace {
    /// Whether there is room for so much more that a process tells.
    fn make_room(&mut self, process: u64, bytes: usize) -> bool {
        let all: usize = self.told.values().map(|(_, bytes)| bytes).sum();
        let (count, own) = self.told.entry(process).or_default();
        let has_room = *count < MOST_OF_ONE && *own + bytes <= MOST_BYTES_OF_ONE && all + bytes <= MOST_BYTES;
        if has_room {
            (*count, *own) = (*count + 1, *own + bytes);
        }
        has_room
    }
}

/// What a workload tells.
pub(crate) struct Told {
    /// Who it is.
    pub(crate) client: Arc<Client>,
    /// Which of the processes that are there.
    pub(crate) process: u64,
    /// What it saw.
    pub(crate) hop: Value,
}

/// A workload that is there to be asked, until this is dropped.
pub(crate) struct Ready {
    following: Arc<Following>,
    id: u64,
    client: Arc<Client>,
    name: String,
    pub(crate) orders: watch::Receiver<Orders>,
}

/// Something that is followed, until this is dropped.
pub(crate) struct Armed {
    following: Arc<Following>,
    trace: u64,
    pub(crate) until: Instant,
    /// When it begins, whoever has not said then that it follows.
    pub(crate) begins_by: Instant,
    pub(crate) hops: mpsc::Receiver<Told>,
    /// How many processes follow, and with the requests of how many it begins.
    pub(crate) processes: (usize, usize),
}

impl Following {
    /// A workload is there.
    pub(crate) fn enter(self: &Arc<Self>, client: Arc<Client>, name: String, now: Instant) -> Ready {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let workload = Workload { client: Arc::clone(&client), name: name.clone(), orders: watch::Sender::default() };
        workload.orders.send_replace(state.orders_of(&workload, now));
        let orders = workload.orders.subscribe();
        state.workloads.insert(id, workload);
        Ready { following: Arc::clone(self), id, client, name, orders }
    }

    /// Follows what is wanted from now on.
    pub(crate) fn arm(self: &Arc<Self>, wanted: Wanted, now: Instant) -> Result<Armed, String> {
        wanted.check()?;
        let whose = wanted.whose()?;
        let until = now.checked_add(Duration::from_secs(wanted.seconds)).ok_or("no clock goes so far")?;
        let mut state = self.state();
        if state.traces.len() >= MOST_ORDERS {
            return Err(format!("{MOST_ORDERS} requests are followed already: wait for one, or end it"));
        }
        // Who is not asked cannot guess it.
        let trace = fastrand::u64(1..);
        let (sender, hops) = mpsc::channel(MOST_WAITING);
        let starting = state.workloads.values().filter(|one| begins(one, whose.as_ref())).count();
        let waits_for = state.workloads.keys().copied().collect();
        let serial = state.serial + 1;
        let told = BTreeMap::new();
        state.traces.insert(trace, Trace { wanted, whose, until, hops: sender, waits_for, serial, told });
        state.tell(now);
        let processes = (state.workloads.len(), starting);
        Ok(Armed { following: Arc::clone(self), trace, until, begins_by: now + PATIENCE, hops, processes })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether requests of a workload, or to it, begin a trace.
fn begins(workload: &Workload, whose: Option<&WorkloadName>) -> bool {
    let Some(WorkloadName { namespace, name }) = whose else { return true };
    let is_app = || workload.client.labels.get("app").is_some_and(|app| app == name);
    *workload.client.namespace == **namespace && (workload.name == *name || is_app())
}

impl State {
    fn orders_of(&self, workload: &Workload, now: Instant) -> Orders {
        let orders = self.traces.iter().map(|(trace, one)| {
            let left = one.until.saturating_duration_since(now).as_millis();
            let left_ms = u64::try_from(left).unwrap_or(u64::MAX);
            let order = WireOrder { trace: *trace, left_ms, ..WireOrder::default() };
            // What is looked for may be a credential.
            match one.waits_for.is_empty() && begins(workload, one.whose.as_ref()) {
                true => WireOrder {
                    starts: true,
                    host: one.wanted.to.clone(),
                    conditions: one.wanted.r#where.clone(),
                    next: one.wanted.next,
                    ..order
                },
                false => order,
            }
        });
        Orders { orders: orders.collect(), serial: self.serial }
    }

    /// Nobody waits for these any more. Traces that waited for nobody else begin.
    fn follows(&mut self, now: Instant, is_heard: impl Fn(u64, u64) -> bool) {
        let mut is_news = false;
        for trace in self.traces.values_mut().filter(|trace| !trace.waits_for.is_empty()) {
            let serial = trace.serial;
            trace.waits_for.retain(|id| !is_heard(*id, serial));
            is_news |= trace.waits_for.is_empty();
        }
        if is_news {
            self.tell(now);
        }
    }

    /// Tells everybody what there is to follow.
    fn tell(&mut self, now: Instant) {
        self.serial += 1;
        for workload in self.workloads.values() {
            workload.orders.send_replace(self.orders_of(workload, now));
        }
    }
}

impl Armed {
    /// It begins now, if it has not.
    pub(crate) fn begin(&self, now: Instant) {
        let mut state = self.following.state();
        let serial = state.traces.get(&self.trace).map(|trace| trace.serial);
        state.follows(now, |_, of| Some(of) == serial);
    }
}

impl Ready {
    /// The workload says what it follows, by the number of the telling.
    pub(crate) fn hear(&self, heard: u64, now: Instant) {
        self.following.state().follows(now, |id, serial| id == self.id && serial <= heard);
    }

    /// Takes in what the workload tells: who it is, is known better here.
    pub(crate) fn take(&self, hop: &str) {
        let bytes = hop.len();
        if bytes > LARGEST_HOP {
            return;
        }
        let Ok(mut hop) = serde_json::from_str::<Value>(hop) else { return };
        let trace = hop.get("trace").and_then(Value::as_str).and_then(|text| u64::from_str_radix(text, 16).ok());
        let is_first = is_first(&hop);
        let mut state = self.following.state();
        let State { workloads, traces, .. } = &mut *state;
        let (Some(fields), Some(trace)) = (hop.as_object_mut(), trace.and_then(|trace| traces.get_mut(&trace))) else {
            return;
        };
        // Nobody makes a request up that somebody else is said to have made.
        if is_first && !workloads.get(&self.id).is_some_and(|own| begins(own, trace.whose.as_ref())) {
            return;
        }
        if !trace.make_room(self.id, bytes) {
            return;
        }
        if let Some(events) = fields.get_mut("events").and_then(Value::as_array_mut) {
            events.truncate(MOST_EVENTS);
        }
        fields.insert("workload".to_owned(), format!("{}/{}", self.client.namespace, brief(&self.name)).into());
        fields.insert("node".to_owned(), brief(&self.client.node_id).into());
        let identity = self.client.identity.as_ref().map(ToString::to_string);
        fields.insert("identity".to_owned(), identity.into());
        // Whoever asked and does not read gets no more.
        _ = trace.hops.try_send(Told { client: Arc::clone(&self.client), process: self.id, hop });
    }
}

fn brief(text: &str) -> String {
    text.chars().take(LONGEST_NAME).collect()
}

impl Drop for Ready {
    fn drop(&mut self) {
        let mut state = self.following.state();
        state.workloads.remove(&self.id);
        state.follows(Instant::now(), |id, _| id == self.id);
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let mut state = self.following.state();
        state.traces.remove(&self.trace);
        state.tell(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use envoy_types::pb::envoy::config::core::v3::Node;

    use super::*;
    use crate::serve::clients::node;

    fn client(namespace: &str, name: &str) -> Arc<Client> {
        let id = format!("mesh~127.0.0.1~{name}.{namespace}~{namespace}.svc.cluster.local");
        let client = node::read(&Node { id, ..Node::default() }, IpAddr::V4(Ipv4Addr::LOCALHOST));
        Arc::new(Client { namespace: namespace.into(), ..client })
    }

    #[test]
    fn everybody_is_asked_at_once_and_those_who_come_later_too() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let enter = |number: usize| {
            let name = format!("web-{}", number % 2);
            following.enter(client("shop", &name), name, now)
        };
        let wanted = Wanted::to("reviews").from("shop/web-1").and("header authorization=Bearer secret");
        let mut all: Vec<Ready> = (0..200).map(enter).collect();
        let armed = following.arm(wanted, now).unwrap();
        assert_eq!(armed.processes, (200, 100));
        all.push(enter(1));
        // Nobody begins before all go on who were there.
        let starts = |all: &[Ready]| all.iter().filter(|one| one.orders.borrow().orders[0].starts).count();
        let serial = all[0].orders.borrow().serial;
        all[1..200].iter().for_each(|ready| ready.hear(serial, now));
        all[0].hear(serial - 1, now);
        assert_eq!(starts(&all), 0);
        all[0].hear(serial, now);
        for (number, ready) in all.iter().enumerate() {
            let orders = ready.orders.borrow();
            assert_eq!(orders.orders.len(), 1, "{number}");
            let order = &orders.orders[0];
            let expected = number % 2 == 1 || number == 200;
            assert_eq!(order.starts, expected, "{number}");
            // What is looked for is nobody's business who is not to look.
            let what = (order.host.is_empty(), order.conditions.is_empty(), order.next == 0, order.left_ms > 0);
            assert_eq!(what, (!expected, !expected, !expected, true), "{number}");
        }
        drop(armed);
        assert!(all.iter().all(|ready| ready.orders.borrow().orders.is_empty()));
    }

    #[test]
    fn a_trace_begins_without_those_who_are_gone_or_say_nothing() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let enter = |name: &str| following.enter(client("shop", name), name.to_owned(), now);
        let (web, gone, silent) = (enter("web"), enter("gone"), enter("silent"));
        let first = following.arm(Wanted::to("reviews"), now).unwrap();
        let second = following.arm(Wanted::to("reviews"), now).unwrap();
        let starts = || web.orders.borrow().orders.iter().filter(|order| order.starts).count();
        let serial = web.orders.borrow().serial;
        web.hear(serial, now);
        drop(gone);
        assert_eq!(starts(), 0);
        first.begin(now);
        assert_eq!(starts(), 1);
        drop(silent);
        assert_eq!(starts(), 2);
        drop(second);
    }

    #[test]
    fn who_tells_is_known_here_and_what_nobody_asked_for_is_dropped() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let ready = following.enter(client("shop", "web"), "web".to_owned(), now);
        let mut armed = following.arm(Wanted::to("reviews"), now).unwrap();
        let trace = armed.trace;
        for (hop, expected) in [
            (format!(r#"{{"trace": "{trace:016x}", "workload": "bank/vault"}}"#), true),
            (format!(r#"{{"trace": "{:016x}"}}"#, trace.wrapping_add(1)), false),
            (r#"{"trace": 7}"#.to_owned(), false),
            ("[]".to_owned(), false),
            ("no JSON".to_owned(), false),
        ] {
            ready.take(&hop);
            let told = armed.hops.try_recv().ok();
            assert_eq!(told.is_some(), expected, "{hop}");
            assert!(told.is_none_or(|told| told.hop["workload"] == "shop/web"), "{hop}");
        }
    }

    #[test]
    fn who_was_not_asked_to_begin_a_trace_goes_on_with_one_and_begins_none() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let enter = |name: &str| following.enter(client("shop", name), name.to_owned(), now);
        let (web, liar) = (enter("web"), enter("liar"));
        let mut armed = following.arm(Wanted::to("reviews").from("shop/web"), now).unwrap();
        let trace = armed.trace;
        let parent = r#","parent": {"hop": "a", "attempt": 1}"#;
        for (ready, parent, expected) in
            [(&web, "", true), (&liar, "", false), (&liar, r#","parent": null"#, false), (&liar, parent, true)]
        {
            ready.take(&format!(r#"{{"trace": "{trace:016x}"{parent}}}"#));
            assert_eq!(armed.hops.try_recv().is_ok(), expected, "{} {parent}", ready.name);
        }
    }

    #[test]
    fn what_processes_tell_has_its_bounds_here() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let enter = || following.enter(client("shop", "web"), "w".repeat(10_000), now);
        let all: Vec<Ready> = (0..8).map(|_| enter()).collect();
        let mut armed = following.arm(Wanted::to("reviews"), now).unwrap();
        let trace = armed.trace;
        let of = |bytes: usize| {
            let start = format!(r#"{{"trace": "{trace:016x}", "text": ""#);
            format!("{start}{}\"}}", "x".repeat(bytes - start.len() - 2))
        };
        all[0].take(&of(LARGEST_HOP + 1));
        assert!(armed.hops.try_recv().is_err());
        let mut told = |ready: &Ready| {
            (0..64).for_each(|_| ready.take(&of(LARGEST_HOP)));
            std::iter::from_fn(|| armed.hops.try_recv().ok()).count() * LARGEST_HOP
        };
        let each: Vec<usize> = all.iter().map(&mut told).collect();
        assert_eq!(each, [[MOST_BYTES_OF_ONE; 4], [0; 4]].concat());
        let mut armed = following.arm(Wanted::to("reviews"), now).unwrap();
        all[0].take(&format!(r#"{{"trace": "{:016x}", "events": [{}0]}}"#, armed.trace, "0,".repeat(10_000)));
        let hop = armed.hops.try_recv().unwrap().hop;
        assert_eq!(hop["events"].as_array().unwrap().len(), MOST_EVENTS);
        assert!(hop.to_string().len() < 2000);
    }

    #[test]
    fn no_more_is_followed_than_there_is_room_for() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let arm = || following.arm(Wanted::to("a"), now);
        let all: Vec<Armed> = (0..MOST_ORDERS).map(|_| arm().unwrap()).collect();
        assert!(arm().is_err());
        drop(all);
        assert!(arm().is_ok());
        let enter = || following.enter(client("shop", "web"), "web".to_owned(), now);
        let armed = arm().unwrap();
        let hop = format!(r#"{{"trace": "{:016x}"}}"#, armed.trace);
        let tell = || {
            let ready = enter();
            (0..2 * MOST_WAITING).for_each(|_| ready.take(&hop));
            armed.hops.len()
        };
        assert_eq!([tell(), tell(), tell()], [MOST_OF_ONE, MOST_WAITING, MOST_WAITING]);
    }
}
