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
    // Both restrict the fault: without them it would hit requests that it was not meant for.
    if !upstream_cluster.is_empty() {
        return Err(Invalid::new("not supported yet").at("upstream_cluster"));
    }
    if !downstream_nodes.is_empty() {
        return Err(Invalid::new("not supported yet").at("downstream_nodes"));
    }
    ignored!(notes; max_active_faults, response_rate_limit);
    Ok(Fault {
        delay: notes.optional("delay", delay, fault_delay)?.flatten(),
        abort: notes.optional("abort", abort, fault_abort)?.flatten(),
        headers: notes.each("headers", headers, header_test)?,
    })
}

fn fault_delay(notes: &mut Notes<'_>, value: common::FaultDelay) -> Result<Option<FaultDelay>, Invalid> {
    use common::fault_delay::FaultDelaySecifier as Kind;
    let common::FaultDelay { percentage, fault_delay_secifier } = value;
    let fraction = share(notes, percentage)?;
    match fault_delay_secifier {
        Some(Kind::FixedDelay(fixed)) => {
            let duration = notes.field("fixed_delay", |_| duration(&fixed))?;
            Ok(Some(FaultDelay { duration, fraction }))
        }
        Some(Kind::HeaderDelay(_)) => {
            notes.ignore("header_delay");
            Ok(None)
        }
        None => Err(Invalid::new("no known kind of delay")),
    }
}

fn fault_abort(notes: &mut Notes<'_>, value: pb::FaultAbort) -> Result<Option<FaultAbort>, Invalid> {
    use pb::fault_abort::ErrorType as Kind;
    let pb::FaultAbort { percentage, response_body, error_type } = value;
    ignored!(notes; response_body);
    let fraction = share(notes, percentage)?;
    match error_type {
        Some(Kind::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status @ 200..=599) => Ok(Some(FaultAbort { http_status: Some(status), grpc_code: None, fraction })),
            _ => Err(Invalid::new(format!("{status} is not a status from 200 to 599")).at("http_status")),
        },
        Some(Kind::GrpcStatus(code)) => Ok(Some(FaultAbort { http_status: None, grpc_code: Some(code), fraction })),
        Some(Kind::HeaderAbort(_)) => {
            notes.ignore("header_abort");
            Ok(None)
        }
        None => Err(Invalid::new("no known kind of abort")),
    }
}

/// How many requests; unset is none, as in Envoy.
fn share(
    notes: &mut Notes<'_>,
    percentage: Option<envoy_types::pb::envoy::r#type::v3::FractionalPercent>,
) -> Result<Fraction, Invalid> {
    Ok(notes.optional("percentage", percentage, |_, value| fraction(&value))?.unwrap_or_default())
}
