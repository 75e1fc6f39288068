//! The fault filter (`envoy.extensions.filters.http.fault.v3.HTTPFault`, gRFC A33).

use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;

use super::common::{duration, fraction};
use super::notes::{Notes, ignored};
use super::route_match::header_test;
use crate::error::Invalid;
use crate::model::{Fault, FaultAbort, FaultDelay, Fraction};

pub(super) fn fault(notes: &mut Notes<'_>, value: pb::HttpFault) -> Result<Fault, Invalid> {
    let pb::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime: _,
        abort_percent_runtime: _,
        delay_duration_runtime: _,
        abort_http_status_runtime: _,
        max_active_faults_runtime: _,
        response_rate_limit_percent_runtime: _,
        abort_grpc_status_runtime: _,
        disable_downstream_cluster_stats: _,
        filter_metadata: _,
    } = value;
    ignored!(notes; response_rate_limit);
    Ok(Fault {
        delay: notes.optional("delay", delay, fault_delay)?,
        abort: notes.optional("abort", abort, fault_abort)?,
        headers: notes.each("headers", headers, header_test)?,
        cluster: (!upstream_cluster.is_empty()).then(|| upstream_cluster.into()),
        nodes: downstream_nodes,
        max_active: max_active_faults.map(|most| most.value),
    })
}

fn fault_delay(notes: &mut Notes<'_>, value: common::FaultDelay) -> Result<FaultDelay, Invalid> {
    use common::fault_delay::FaultDelaySecifier as Kind;
    let common::FaultDelay { percentage, fault_delay_secifier } = value;
    let (fraction, unit) = share(notes, percentage)?;
    let duration = match fault_delay_secifier {
        Some(Kind::FixedDelay(fixed)) => Some(notes.field("fixed_delay", |_| duration(&fixed))?),
        Some(Kind::HeaderDelay(_)) => None,
        None => return Err(Invalid::new("no known kind of delay")),
    };
    Ok(FaultDelay { duration, fraction, unit })
}

fn fault_abort(notes: &mut Notes<'_>, value: pb::FaultAbort) -> Result<FaultAbort, Invalid> {
    use pb::fault_abort::ErrorType as Kind;
    let pb::FaultAbort { percentage, response_body, error_type } = value;
    let (fraction, unit) = share(notes, percentage)?;
    let abort = match error_type {
        Some(Kind::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status @ 200..=599) => FaultAbort::http(status, fraction),
            _ => return Err(Invalid::new(format!("{status} is not a status from 200 to 599")).at("http_status")),
        },
        Some(Kind::GrpcStatus(code)) => FaultAbort::grpc(code, fraction),
        Some(Kind::HeaderAbort(_)) => FaultAbort::by_header(fraction),
        None => return Err(Invalid::new("no known kind of abort")),
    };
    Ok(FaultAbort { unit, body: (!response_body.is_empty()).then(|| response_body.into()), ..abort })
}

/// How many requests, and what 1 is in a percentage that a request says itself; unset is none, as in Envoy.
fn share(
    notes: &mut Notes<'_>,
    percentage: Option<envoy_types::pb::envoy::r#type::v3::FractionalPercent>,
) -> Result<(Fraction, u32), Invalid> {
    let unit = percentage.map_or(Ok(10_000), |value| {
        let one = envoy_types::pb::envoy::r#type::v3::FractionalPercent { numerator: 1, ..value };
        fraction(&one).map(Fraction::per_million).map_err(|invalid| invalid.at("percentage"))
    })?;
    Ok((notes.optional("percentage", percentage, |_, value| fraction(&value))?.unwrap_or_default(), unit))
}
