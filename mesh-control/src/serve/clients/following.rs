//! Who can be asked to follow live requests, what is followed now, and for whom. Orders last as long as somebody waits for what
//! comes of them; what a workload tells of no order is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::live_trace::MOST_ORDERS;
use mesh_core::xds::live_trace::{Orders, WireOrder};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::catalog::Client;
use crate::explain::workload::WorkloadName;
use crate::live_trace::Wanted;

/// So many hops wait for whoever asked; what else comes is dropped.
const MOST_WAITING: usize = 1024;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Following {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
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
}

/// What a workload tells.
pub(crate) struct Told {
    /// Who it is.
    pub(crate) client: Arc<Client>,
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
        state.traces.insert(trace, Trace { wanted, whose, until, hops: sender });
        state.tell(now);
        let processes = (state.workloads.len(), starting);
        Ok(Armed { following: Arc::clone(self), trace, until, hops, processes })
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
        let orders = self.traces.iter().map(|(trace, one)| WireOrder {
            trace: *trace,
            starts: begins(workload, one.whose.as_ref()),
            host: one.wanted.to.clone(),
            conditions: one.wanted.r#where.clone(),
            next: one.wanted.next,
            left_ms: u64::try_from(one.until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX),
        });
        Orders { orders: orders.collect() }
    }

    /// Tells everybody what there is to follow.
    fn tell(&self, now: Instant) {
        for workload in self.workloads.values() {
            workload.orders.send_replace(self.orders_of(workload, now));
        }
    }
}

impl Ready {
    /// Takes in what the workload tells: who it is, is known better here.
    pub(crate) fn take(&self, hop: &str) {
        let Ok(mut hop) = serde_json::from_str::<Value>(hop) else { return };
        let trace = hop.get("trace").and_then(Value::as_str).and_then(|text| u64::from_str_radix(text, 16).ok());
        let state = self.following.state();
        let (Some(fields), Some(trace)) = (hop.as_object_mut(), trace.and_then(|trace| state.traces.get(&trace)))
        else {
            return;
        };
        fields.insert("workload".to_owned(), format!("{}/{}", self.client.namespace, self.name).into());
        fields.insert("node".to_owned(), self.client.node_id.to_string().into());
        let identity = self.client.identity.as_ref().map(ToString::to_string);
        fields.insert("identity".to_owned(), identity.into());
        // Whoever asked and does not read gets no more.
        _ = trace.hops.try_send(Told { client: Arc::clone(&self.client), hop });
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.following.state().workloads.remove(&self.id);
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
        let mut all: Vec<Ready> = (0..200).map(enter).collect();
        let armed = following.arm(Wanted::to("reviews").from("shop/web-1"), now).unwrap();
        assert_eq!(armed.processes, (200, 100));
        all.push(enter(1));
        for (number, ready) in all.iter().enumerate() {
            let orders = ready.orders.borrow();
            assert_eq!(orders.orders.len(), 1, "{number}");
            assert_eq!(orders.orders[0].starts, number % 2 == 1 || number == 200, "{number}");
        }
        drop(armed);
        assert!(all.iter().all(|ready| ready.orders.borrow().orders.is_empty()));
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
    fn no_more_is_followed_than_there_is_room_for() {
        let (following, now) = (Arc::new(Following::default()), Instant::now());
        let arm = || following.arm(Wanted::to("a"), now);
        let all: Vec<Armed> = (0..MOST_ORDERS).map(|_| arm().unwrap()).collect();
        assert!(arm().is_err());
        drop(all);
        assert!(arm().is_ok());
        let ready = following.enter(client("shop", "web"), "web".to_owned(), now);
        let armed = arm().unwrap();
        let hop = format!(r#"{{"trace": "{:016x}"}}"#, armed.trace);
        (0..2 * MOST_WAITING).for_each(|_| ready.take(&hop));
        assert_eq!(armed.hops.len(), MOST_WAITING);
    }
}
