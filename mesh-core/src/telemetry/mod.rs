//! Istio's standard metrics of the requests and connections of this process: their names, their 25 labels, and how they are
//! read, by Prometheus among others; and those that gRPC's own clients and servers have.
//!
//! [`Metrics`] is an [`Observer`](crate::request_info::Observer). A request like one before costs a hash, a look, and a few
//! additions; nothing is allocated for it. How many series there are is bounded, and those of endpoints that are gone go, too.

mod facts;
mod families;
mod grpc;
mod labels;
mod log_line;
mod peers;
mod registry;
mod series;
mod span;
mod text;
mod writer;

pub use crate::histogram::{BOUNDS, Histogram};
pub use facts::Ended;
pub use families::{FAMILIES, Family, Read};
pub use grpc::{Call, GrpcMetrics};
pub use labels::{LABELS, Labels};
pub use log_line::{LogLine, line as log_line};
pub use peers::Peers;
pub use registry::{Ends, MOST_SERIES, Metrics, Reporter};
pub use series::{BoundHistograms, Histograms, Sample, Series};
pub use span::{Span, SpanKind, SpanSink, SpanValue, spans_of};
pub use text::Exposition;
pub use writer::{Kind, MetricsReader, MetricsWriter, ReadMetrics, Value, write_standard};
