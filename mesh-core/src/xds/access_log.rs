//! Who called what, told to the control plane over Envoy's access log service
//! (`envoy.service.accesslog.v3.AccessLogService`), by which sidecars tell it, too.
//!
//! Nothing is recorded or told before a server of the bootstrap asks for it, in the head of its stream's responses ([`CALLS`]),
//! and it is told over the connection of that stream. A report is a stream with what is new, and counts as told when the
//! server has ended it with success; until then it is kept, and told again. New forms of calls are told within seconds, and how often they came by the minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, Node, RequestMethod, SocketAddress, address};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::CertificateProperties;
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::SubjectAltName;
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::subject_alt_name::San;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties, TlsProperties,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries,
};
use envoy_types::pb::google::protobuf::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::calls::{Call, CallKey, Counted, Lost, Recorder, Report};
use crate::identity::SpiffeId;
use crate::xds::backoff;
use crate::xds::channels::{Open, OpenStream};

/// In the head of the responses on a stream of xDS: the server keeps records of calls, and wants this workload's.
pub const CALLS: &str = "x-mesh-calls";

/// What entries of ours say beyond Envoy's, as custom tags.
const COUNT: &str = "mesh.count";
const LAST: &str = "mesh.last";
const RULE: &str = "mesh.rule";
const METHOD: &str = "mesh.method";
const LOST: &str = "mesh.lost";
/// Envoy's words in the details of a response, for who was not let in.
const DENIED: [&str; 3] = ["rbac_access_denied", "ext_authz_denied", "ext_authz_error"];

/// Calls of a new form are gathered for so long before they are told.
const SOON: Duration = Duration::from_secs(1);
/// How often it is told how many there were.
const EVERY: Duration = Duration::from_secs(60);
/// How long a server may take for a report.
const PATIENCE: Duration = Duration::from_secs(10);
/// Entries of one message.
const MOST_ENTRIES: usize = 500;

/// One stream's word on whether its server wants to be told, for as long as the stream lasts.
#[derive(Debug)]
pub(crate) struct Wanted {
    calls: Arc<Recorder>,
    stream: OpenStream,
}

impl Wanted {
    /// What the head of the stream's responses says of it.
    pub(crate) fn hear(&self, head: &MetadataMap, channel: &Channel) {
        let is_wanted = head.contains_key(CALLS);
        self.calls.set_on(is_wanted);
        self.stream.set(is_wanted.then_some(channel));
    }
}

/// Tells for as long as it is held, over the connections of the streams.
#[derive(Debug)]
pub(crate) struct Telling {
    calls: Arc<Recorder>,
    open: watch::Sender<Open>,
    leave: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Telling {
    /// Begins to tell whoever asks for it. To be called inside a runtime.
    pub(crate) fn start(calls: Arc<Recorder>, node: Node, seed: u64) -> Telling {
        let open = watch::Sender::new(None);
        let (leave, leaving) = oneshot::channel();
        let random = fastrand::Rng::with_seed(seed);
        let task = tokio::spawn(tell(Arc::clone(&calls), open.subscribe(), node, random, leaving));
        Telling { calls, open, leave: Some(leave), task }
    }

    /// For a new stream, by its number.
    pub(crate) fn wanted(&self, stream: u64) -> Wanted {
        Wanted { calls: Arc::clone(&self.calls), stream: OpenStream::new(&self.open, stream) }
    }

    /// Tells what is left, within this time.
    pub(crate) async fn end(mut self, patience: Duration) {
        if let Some(leave) = self.leave.take() {
            // The task may have ended: there is nobody to tell.
            _ = leave.send(());
            _ = tokio::time::timeout(patience, &mut self.task).await;
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell(
    calls: Arc<Recorder>,
    mut open: watch::Receiver<Open>,
    node: Node,
    mut random: fastrand::Rng,
    mut leaving: oneshot::Receiver<()>,
) {
    let mut failures = 0_u32;
    let mut is_last = false;
    while !is_last {
        is_last = tokio::select! {
            biased;
            _ = &mut leaving => true,
            () = due(&calls, &mut open, failures, random.f64()) => false,
        };
        let Some((_, channel)) = open.borrow_and_update().clone() else { continue };
        let report = calls.report();
        if report.is_empty() {
            continue;
        }
        match send(channel, &report, &node).await {
            Ok(()) => {
                calls.told(&report);
                failures = 0;
            }
            Err(reason) => {
                tracing::debug!("the record of calls is kept and told later: {reason}");
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// Waits until it is time to tell.
async fn due(calls: &Recorder, open: &mut watch::Receiver<Open>, failures: u32, jitter: f64) {
    if open.borrow().is_none() {
        // It cannot fail: there is a sender for as long as there is a task. What came meanwhile is told at once.
        _ = open.wait_for(Option::is_some).await;
        return;
    }
    if failures > 0 {
        // A new stream may be to a server that is back.
        _ = tokio::time::timeout(backoff::pause(failures, jitter), open.changed()).await;
        return;
    }
    // A timeout is the time for the counts.
    _ = tokio::time::timeout(EVERY.mul_f64(0.9 + 0.2 * jitter), calls.news()).await;
    tokio::time::sleep(SOON).await;
}

async fn send(channel: Channel, report: &Report, node: &Node) -> Result<(), String> {
    let messages = tokio_stream::iter(encode(report, node));
    let mut client = AccessLogServiceClient::new(channel);
    let answer = tokio::time::timeout(PATIENCE, client.stream_access_logs(messages)).await;
    let late = |_| format!("no answer within {} s", PATIENCE.as_secs());
    answer.map_err(late)?.map(drop).map_err(|status| status.to_string())
}

/// What one entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Calls that are alike.
    Calls(Counted),
    /// Calls that found no place.
    Lost(Lost),
}

/// The messages of a report; the first one says who reports.
pub fn encode(report: &Report, node: &Node) -> Vec<StreamAccessLogsMessage> {
    let calls = report.calls.iter().map(entry_of);
    let lost = report.lost.iter().map(lost_entry);
    let missed = (report.missed > 0).then(|| lost_entry(&Lost::new(None, report.missed)));
    let entries: Vec<HttpAccessLogEntry> = calls.chain(lost).chain(missed).collect();
    let messages = entries.chunks(MOST_ENTRIES).enumerate().map(|(index, entries)| StreamAccessLogsMessage {
        identifier: (index == 0).then(|| Identifier { node: Some(node.clone()), log_name: "mesh.calls".to_owned() }),
        log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: entries.to_vec() })),
    });
    messages.collect()
}

/// What an entry says, whoever wrote it: ours count many calls, a sidecar's are one call each, at `now` (in seconds since 1970)
/// where they do not say. Of a path its form is taken.
pub fn decode(entry: &HttpAccessLogEntry, now: u64) -> Option<Entry> {
    let common = entry.common_properties.as_ref()?;
    let tag = |name: &str| common.custom_tags.get(name).map(String::as_str);
    let number = |name: &str| tag(name).and_then(|text| text.parse::<u64>().ok());
    let principal = principal_of(common);
    if let Some(count) = number(LOST) {
        return (count > 0).then(|| Entry::Lost(Lost::new(principal.map(|id| id.as_str().into()), count)));
    }
    let request = entry.request.as_ref()?;
    let details = entry.response.as_ref().map_or("", |response| &response.response_code_details);
    let content_type = request.request_headers.get("content-type").map_or("", String::as_str);
    let method = match (tag(METHOD), RequestMethod::try_from(request.request_method)) {
        (Some(method), _) => method,
        (None, Ok(RequestMethod::MethodUnspecified) | Err(_)) => "",
        (None, Ok(method)) => method.as_str_name(),
    };
    let call = Call {
        principal: principal.as_ref().map(SpiffeId::as_str),
        port: port_of(common),
        is_grpc: content_type.starts_with("application/grpc"),
        method,
        path: &request.path,
        is_allowed: !DENIED.iter().any(|denied| details.starts_with(denied)),
        rule: tag(RULE),
    };
    let started = common.start_time.as_ref().and_then(|at| u64::try_from(at.seconds).ok());
    let first = started.filter(|first| *first <= now).unwrap_or(now);
    let last = number(LAST).filter(|last| *last <= now).unwrap_or(first).max(first);
    let rule = call.rule.filter(|rule| is_rule(rule)).map(Arc::from);
    Some(Entry::Calls(Counted::new(CallKey::of(&call), rule, number(COUNT).unwrap_or(1).max(1), first, last)))
}

/// Whether it can be the name of a rule: whoever reads it later is shown it as it is.
pub fn is_rule(text: &str) -> bool {
    text.len() <= 512 && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn entry_of(counted: &Counted) -> HttpAccessLogEntry {
    let Counted { key, rule, count, first, last } = counted;
    let tags = [(COUNT, count.to_string()), (LAST, last.to_string()), (METHOD, key.method.to_string())];
    let tags = tags.into_iter().chain(rule.iter().map(|rule| (RULE, rule.to_string())));
    let method = RequestMethod::from_str_name(&key.method).unwrap_or(RequestMethod::MethodUnspecified);
    let grpc = key.is_grpc.then(|| ("content-type".to_owned(), "application/grpc".to_owned()));
    let (code, details) = if key.is_allowed { (0, "") } else { (403, DENIED[0]) };
    let mut common = common_of(key.principal.as_deref(), tags);
    common.start_time = Some(Timestamp { seconds: i64::try_from(*first).unwrap_or_default(), nanos: 0 });
    common.downstream_local_address = Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            port_specifier: Some(PortSpecifier::PortValue(key.port.into())),
            ..SocketAddress::default()
        })),
    });
    HttpAccessLogEntry {
        common_properties: Some(common),
        request: Some(HttpRequestProperties {
            request_method: method.into(),
            path: key.path.to_string(),
            request_headers: grpc.into_iter().collect(),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: (code > 0).then_some(envoy_types::pb::google::protobuf::UInt32Value { value: code }),
            response_code_details: details.to_owned(),
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

fn lost_entry(lost: &Lost) -> HttpAccessLogEntry {
    let tags = [(LOST, lost.count.to_string())].into_iter();
    HttpAccessLogEntry {
        common_properties: Some(common_of(lost.principal.as_deref(), tags)),
        ..HttpAccessLogEntry::default()
    }
}

fn common_of<'t>(principal: Option<&str>, tags: impl Iterator<Item = (&'t str, String)>) -> AccessLogCommon {
    let tls = principal.map(|principal| TlsProperties {
        peer_certificate_properties: Some(CertificateProperties {
            subject_alt_name: vec![SubjectAltName { san: Some(San::Uri(principal.to_owned())) }],
            ..CertificateProperties::default()
        }),
        ..TlsProperties::default()
    });
    let custom_tags: HashMap<String, String> = tags.map(|(name, value)| (name.to_owned(), value)).collect();
    AccessLogCommon { tls_properties: tls, custom_tags, ..AccessLogCommon::default() }
}

/// Who called: the one URI of the certificate, where that is an ID.
fn principal_of(common: &AccessLogCommon) -> Option<SpiffeId> {
    let names = &common.tls_properties.as_ref()?.peer_certificate_properties.as_ref()?.subject_alt_name;
    let mut uris = names.iter().filter_map(|name| match &name.san {
        Some(San::Uri(uri)) => Some(uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(only), None) => only.parse().ok(),
        _ => None,
    }
}

fn port_of(common: &AccessLogCommon) -> u16 {
    let address = common.downstream_local_address.as_ref().and_then(|address| address.address.as_ref());
    match address {
        Some(address::Address::SocketAddress(SocketAddress {
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..
        })) => u16::try_from(*port).unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn key(principal: Option<&str>, method: &str, path: &str, is_allowed: bool) -> CallKey {
        let is_grpc = path.contains('.');
        CallKey::of(&Call { principal, port: 9080, is_grpc, method, path, is_allowed, rule: None })
    }

    #[test]
    fn a_report_arrives_as_it_was() {
        let calls = vec![
            Counted::new(key(Some(WEB), "GET", "/a/{*}", true), Some("AuthorizationPolicy/shop/a#0".into()), 7, 10, 20),
            Counted::new(key(None, "PURGE", "/a", false), None, 1, 10, 10),
            Counted::new(key(Some(WEB), "POST", "/shop.Cart/Add", true), None, u64::MAX, 0, 30),
        ];
        let report = Report { calls, lost: vec![Lost::new(Some(WEB.into()), 3)], missed: 0 };
        let messages = encode(&report, &Node { id: "n".to_owned(), ..Node::default() });
        let node = messages[0].identifier.as_ref().and_then(|identifier| identifier.node.as_ref());
        assert_eq!(node.map(|node| &*node.id), Some("n"));
        let entries = messages.iter().flat_map(|message| match &message.log_entries {
            Some(LogEntries::HttpLogs(entries)) => entries.log_entry.clone(),
            _ => Vec::new(),
        });
        let read: Vec<Entry> = entries.filter_map(|entry| decode(&entry, 1000)).collect();
        let calls = report.calls.iter().cloned().map(Entry::Calls);
        assert_eq!(read, calls.chain(report.lost.iter().cloned().map(Entry::Lost)).collect::<Vec<_>>());
    }

    #[test]
    fn a_sidecars_entry_is_one_call_of_which_the_form_is_taken() {
        let mut common = common_of(Some(WEB), std::iter::empty());
        common.start_time = Some(Timestamp { seconds: 50, nanos: 0 });
        let request = HttpRequestProperties {
            request_method: RequestMethod::Get.into(),
            path: "/users/4711?token=secret".to_owned(),
            ..HttpRequestProperties::default()
        };
        let details = "rbac_access_denied_matched_policy[none]".to_owned();
        let response = HttpResponseProperties { response_code_details: details, ..HttpResponseProperties::default() };
        let entry = HttpAccessLogEntry {
            common_properties: Some(common),
            request: Some(request),
            response: Some(response),
            ..HttpAccessLogEntry::default()
        };
        let Some(Entry::Calls(counted)) = decode(&entry, 60) else { panic!("a call") };
        let expected = CallKey { port: 0, ..key(Some(WEB), "GET", "/users/{*}", false) };
        assert_eq!((counted.key, counted.count, counted.first, counted.last), (expected, 1, 50, 50));
    }

    #[test]
    fn what_cannot_be_read_is_nothing_or_nobodys() {
        assert_eq!(decode(&HttpAccessLogEntry::default(), 1), None);
        let two = |uris: &[&str]| {
            let mut common = common_of(Some("x"), std::iter::empty());
            let certificate = common.tls_properties.as_mut().and_then(|tls| tls.peer_certificate_properties.as_mut());
            certificate.unwrap().subject_alt_name =
                uris.iter().map(|uri| SubjectAltName { san: Some(San::Uri((*uri).to_owned())) }).collect();
            principal_of(&common)
        };
        assert_eq!(two(&[WEB]).map(|id| id.to_string()).as_deref(), Some(WEB));
        for uris in [&[WEB, "spiffe://a/b"][..], &[], &["no id"]] {
            assert_eq!(two(uris), None);
        }
    }
}
