//! Which requests an access log has: expressions of CEL, as Istio's Telemetry has them, and those of Envoy's own filters that say
//! something of a request here.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use pb::access_log_filter::FilterSpecifier;

use super::common::{fraction, holds, unpack};
use crate::error::Invalid;
use crate::model::{CelExpression, Comparison, LogFilter};

/// How deep filters may stand in each other.
const DEEPEST: usize = 8;

/// Errors say why a log with this filter cannot be written as it is meant.
pub(super) fn decode(filter: pb::AccessLogFilter) -> Result<LogFilter, Invalid> {
    at_depth(filter, 0)
}

fn at_depth(filter: pb::AccessLogFilter, depth: usize) -> Result<LogFilter, Invalid> {
    let unknown = |name: &str| Err(Invalid::new(format!("{name} is not known")));
    let all = |filters: Vec<pb::AccessLogFilter>| match depth < DEEPEST {
        true => filters.into_iter().map(|filter| at_depth(filter, depth + 1)).collect::<Result<Vec<_>, _>>(),
        false => Err(Invalid::new(format!("filters are more than {DEEPEST} deep"))),
    };
    Ok(match filter.filter_specifier.ok_or_else(|| Invalid::new("is empty"))? {
        FilterSpecifier::StatusCodeFilter(filter) => {
            let (comparison, value) = compared(filter.comparison)?;
            LogFilter::Status(comparison, value)
        }
        FilterSpecifier::DurationFilter(filter) => {
            let (comparison, value) = compared(filter.comparison)?;
            LogFilter::Duration(comparison, Duration::from_millis(value.into()))
        }
        // No request is marked as one of a health check here.
        FilterSpecifier::NotHealthCheckFilter(_) => LogFilter::All(Vec::new()),
        FilterSpecifier::RuntimeFilter(filter) => {
            LogFilter::Sample(fraction(&filter.percent_sampled.unwrap_or_default())?)
        }
        FilterSpecifier::AndFilter(filter) => LogFilter::All(all(filter.filters)?),
        FilterSpecifier::OrFilter(filter) => LogFilter::Any(all(filter.filters)?),
        FilterSpecifier::ResponseFlagFilter(filter) => LogFilter::Flags(filter.flags),
        FilterSpecifier::ExtensionFilter(filter) => match filter.config_type {
            Some(pb::extension_filter::ConfigType::TypedConfig(any)) if holds::<ExpressionFilter>(&any) => {
                let ExpressionFilter { expression, cel_config } = unpack(&any)?;
                if cel_config.is_some() {
                    return unknown("cel_config");
                }
                let read = CelExpression::condition(&expression);
                LogFilter::Expression(read.map_err(|fault| Invalid::new(format!("expression: {fault}")))?)
            }
            _ => return unknown(&filter.name),
        },
        FilterSpecifier::TraceableFilter(_) => return unknown("traceable_filter"),
        FilterSpecifier::HeaderFilter(_) => return unknown("header_filter"),
        FilterSpecifier::GrpcStatusFilter(_) => return unknown("grpc_status_filter"),
        FilterSpecifier::MetadataFilter(_) => return unknown("metadata_filter"),
        FilterSpecifier::LogTypeFilter(_) => return unknown("log_type_filter"),
    })
}

fn compared(filter: Option<pb::ComparisonFilter>) -> Result<(Comparison, u32), Invalid> {
    use pb::comparison_filter::Op;
    let filter = filter.ok_or_else(|| Invalid::new("comparison is missing"))?;
    let comparison = match Op::try_from(filter.op) {
        Ok(Op::Eq) => Comparison::Equal,
        Ok(Op::Ge) => Comparison::AtLeast,
        Ok(Op::Le) => Comparison::AtMost,
        Ok(Op::Ne) => Comparison::Unequal,
        Err(_) => return Err(Invalid::new("op is not a known value")),
    };
    Ok((comparison, filter.value.map_or(0, |value| value.default_value)))
}
