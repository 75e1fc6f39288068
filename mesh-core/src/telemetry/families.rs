//! The families of Istio's standard metrics: what is read of a series for each.

use std::sync::atomic::AtomicU64;

use super::series::Series;
use crate::histogram::Histogram;
use crate::model::PROMETHEUS_NAMES;

/// What is read of a series.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Read {
    /// What only grows.
    Counter(fn(&Series) -> &AtomicU64),
    /// Values by their size.
    Histogram(fn(&Series) -> &Histogram),
}

/// One family.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Family {
    /// Its name, to Prometheus.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Which series it is of.
    pub is_of: fn(&Series) -> bool,
    /// What is read of them.
    pub read: Read,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    is_of: fn(&Series) -> bool,
    read: fn(&Series) -> &AtomicU64,
) -> Family {
    Family { name, help, is_of, read: Read::Counter(read) }
}

const fn histogram(name: &'static str, help: &'static str, read: fn(&Series) -> &Histogram) -> Family {
    Family { name, help, is_of: is_http, read: Read::Histogram(read) }
}

/// All of them, in the order of their names.
pub const FAMILIES: [Family; 10] = [
    counter(PROMETHEUS_NAMES[0], "Requests.", is_http, |series| &series.requests),
    histogram(PROMETHEUS_NAMES[1], "How long requests took, in milliseconds.", |series| &series.duration),
    histogram(PROMETHEUS_NAMES[2], "How large the bodies of requests were, in bytes.", |series| &series.request_bytes),
    histogram(PROMETHEUS_NAMES[3], "How large the bodies of responses were, in bytes.", |series| {
        &series.response_bytes
    }),
    counter(PROMETHEUS_NAMES[4], "Messages of gRPC requests.", is_grpc, |series| &series.request_messages),
    counter(PROMETHEUS_NAMES[5], "Messages of gRPC responses.", is_grpc, |series| &series.response_messages),
    counter(PROMETHEUS_NAMES[6], "Bytes that servers sent over connections that are not HTTP.", is_tcp, |series| {
        &series.sent_bytes
    }),
    counter(PROMETHEUS_NAMES[7], "Bytes that servers received over connections that are not HTTP.", is_tcp, |series| {
        &series.received_bytes
    }),
    counter(PROMETHEUS_NAMES[8], "Connections that are not HTTP that were opened.", is_tcp, |series| &series.opened),
    counter(PROMETHEUS_NAMES[9], "Connections that are not HTTP that were closed.", is_tcp, |series| &series.closed),
];

fn is_http(series: &Series) -> bool {
    !series.is_tcp
}

fn is_grpc(series: &Series) -> bool {
    series.is_grpc
}

fn is_tcp(series: &Series) -> bool {
    series.is_tcp
}
