//! Quotas (`envoy.extensions.filters.http.rate_limit_quota.v3`), of a listener, and what virtual hosts and routes say in their
//! place. Of the matchers those are read that go by headers of the request; what else there may be is refused, since a
//! request would be of another bucket without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::GrpcService;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::route::v3::RateLimit as RateLimitProto;
use envoy_types::pb::envoy::extensions::filters::http::rate_limit_quota::v3 as pb;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::QuotaAssignmentAction;
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::envoy::r#type::v3::RateLimitStrategy;
use envoy_types::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, RequestsPerTimeUnit, Strategy};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::r#type::matcher::v3 as xds;
use http::StatusCode;
use prost::Message;

use super::common::{duration, filled, parse, positive, runtime_share, status_from, string_test, unpack};
use super::headers::{self, mutations};
use super::notes::{Notes, ignored};
use super::rate_limits::{rate_limits, unit};
use super::route_match::header_name;
use crate::error::Invalid;
use crate::model::{
    DescriptorAction, ExpiredQuota, Fraction, HeaderTest, QuotaPerRoute, QuotaRule, QuotaSettings, QuotaStrategy,
    QuotaTest, RateLimit, RateLimitQuota, StringTest,
};

/// The cluster of the control plane itself, as Istio's sidecars call it.
pub const CONTROL_PLANE: &str = "xds-grpc";

/// What `mesh-control` says besides, to the library alone: behind the fields that Envoy knows, in the same message.
#[derive(Clone, PartialEq, Message)]
pub struct QuotaBesides {
    /// More entries of the ID, by actions that Envoy has for rate limits and by our own.
    #[prost(message, optional, tag = "1000")]
    pub bucket: Option<RateLimitProto>,
    /// What it is called in metrics: the object.
    #[prost(string, tag = "1001")]
    pub limit: String,
    /// And its rule.
    #[prost(string, tag = "1002")]
    pub rule: String,
    /// The refused are told when to come back.
    #[prost(bool, tag = "1003")]
    pub tells_when: bool,
}

/// Envoy takes no shorter interval.
const SHORTEST: Duration = Duration::from_millis(100);

/// Of a listener.
pub(super) fn quota(notes: &mut Notes<'_>, any: &Any) -> Result<RateLimitQuota, Invalid> {
    let pb::RateLimitQuotaFilterConfig {
        rlqs_server,
        domain,
        bucket_matchers,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
    } = unpack(any)?;
    notes.required("rlqs_server", rlqs_server, service)?;
    let rules = notes.required("bucket_matchers", bucket_matchers, rules)?;
    let mut quota = RateLimitQuota::new(filled("domain", domain)?, rules);
    quota.enabled = runtime_share(notes, "filter_enabled", filter_enabled)?.unwrap_or(Fraction::ALL);
    quota.enforced = runtime_share(notes, "filter_enforced", filter_enforced)?.unwrap_or(Fraction::ALL);
    let changes = mutations(
        notes,
        headers::Lists {
            request_headers_to_add: request_headers_to_add_when_not_enforced,
            ..headers::Lists::default()
        },
    )?;
    quota.request_changes = changes.request;
    Ok(quota)
}

/// Of a virtual host or a route.
pub(super) fn per_route(notes: &mut Notes<'_>, any: &Any) -> Result<QuotaPerRoute, Invalid> {
    let pb::RateLimitQuotaOverride { domain, bucket_matchers } = unpack(any)?;
    Ok(QuotaPerRoute {
        domain: (!domain.is_empty()).then(|| domain.into()),
        rules: notes.optional("bucket_matchers", bucket_matchers, rules)?,
    })
}

/// Only the control plane is told, over the connection of its stream.
fn service(notes: &mut Notes<'_>, value: GrpcService) -> Result<(), Invalid> {
    let GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    ignored!(notes; timeout, initial_metadata, retry_policy);
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(service)) if service.cluster_name == CONTROL_PLANE => Ok(()),
        _ => {
            let reason = format!("only the control plane assigns quotas here: envoy_grpc with {CONTROL_PLANE:?}");
            Err(Invalid::new(reason).at("target_specifier"))
        }
    }
}

/// The rules of a matcher, in their order.
fn rules(notes: &mut Notes<'_>, value: xds::Matcher) -> Result<Vec<QuotaRule>, Invalid> {
    let xds::Matcher { on_no_match, matcher_type } = value;
    let mut rules = match matcher_type {
        None => Vec::new(),
        Some(xds::matcher::MatcherType::MatcherList(list)) => notes.field("matcher_list", |notes| {
            notes.each("matchers", list.matchers, |notes, matcher| {
                let test = notes.required("predicate", matcher.predicate, test)?;
                let settings = notes.required("on_match", matcher.on_match, on_match)?;
                Ok(QuotaRule { test: Some(test), ..QuotaRule::new(settings) })
            })
        })?,
        Some(xds::matcher::MatcherType::MatcherTree(tree)) => {
            notes.field("matcher_tree", |notes| by_value(notes, tree))?
        }
    };
    if let Some(settings) = notes.optional("on_no_match", on_no_match, |notes, value| on_match(notes, *value))? {
        rules.push(QuotaRule::new(settings));
    }
    if rules.is_empty() {
        return Err(Invalid::new("no bucket is for any request"));
    }
    Ok(rules)
}

/// A rule for each value of a header.
fn by_value(notes: &mut Notes<'_>, tree: xds::matcher::MatcherTree) -> Result<Vec<QuotaRule>, Invalid> {
    use xds::matcher::matcher_tree::TreeType;
    let name = notes.required("input", tree.input, |_, input| header(&input.typed_config))?;
    let Some(TreeType::ExactMatchMap(map)) = tree.tree_type else {
        return Err(Invalid::new("only exact_match_map is supported").at("tree_type"));
    };
    let rules = BTreeMap::from_iter(map.map).into_iter().map(|(value, settings)| {
        let settings = notes.entry("exact_match_map", &value, |notes| on_match(notes, settings))?;
        let test = exact_or(&name, StringTest::Exact { value, ignore_case: false });
        Ok(QuotaRule { test: Some(QuotaTest::Header(test)), ..QuotaRule::new(settings) })
    });
    rules.collect()
}

fn exact_or(name: &Arc<str>, test: StringTest) -> HeaderTest {
    HeaderTest::Value { name: Arc::clone(name), test, invert: false, missing_is_empty: false }
}

fn test(notes: &mut Notes<'_>, value: xds::matcher::matcher_list::Predicate) -> Result<QuotaTest, Invalid> {
    use xds::matcher::matcher_list::predicate::{MatchType, single_predicate::Matcher};
    match value.match_type {
        Some(MatchType::SinglePredicate(single)) => notes.field("single_predicate", |notes| {
            let name = notes.required("input", single.input, |_, input| header(&input.typed_config))?;
            let Some(Matcher::ValueMatch(value)) = single.matcher else {
                return Err(Invalid::new("only value_match is supported").at("matcher"));
            };
            // Of the same fields as Envoy's.
            let test = notes.field("value_match", |notes| string_test(notes, parse(&value.encode_to_vec())?))?;
            Ok(QuotaTest::Header(exact_or(&name, test)))
        }),
        Some(MatchType::AndMatcher(list)) => {
            notes.field("and_matcher", |notes| notes.each("predicate", list.predicate, test)).map(QuotaTest::All)
        }
        Some(MatchType::OrMatcher(list)) => {
            notes.field("or_matcher", |notes| notes.each("predicate", list.predicate, test)).map(QuotaTest::Any)
        }
        Some(MatchType::NotMatcher(other)) => {
            notes.field("not_matcher", |notes| test(notes, *other)).map(|test| QuotaTest::Not(Box::new(test)))
        }
        None => Err(Invalid::new("no known kind of predicate")),
    }
}

/// The header that an input is: no other input is known here.
fn header(config: &Option<Any>) -> Result<Arc<str>, Invalid> {
    let any = config.as_ref().ok_or_else(|| Invalid::new("missing").at("typed_config"))?;
    let input: HttpRequestHeaderMatchInput = unpack(any).map_err(|invalid| invalid.at("typed_config"))?;
    header_name(&input.header_name).map_err(|invalid| invalid.at("header_name"))
}

fn on_match(notes: &mut Notes<'_>, value: xds::matcher::OnMatch) -> Result<QuotaSettings, Invalid> {
    let xds::matcher::OnMatch { keep_matching, on_match } = value;
    if keep_matching {
        return Err(Invalid::new("not supported").at("keep_matching"));
    }
    match on_match {
        Some(xds::matcher::on_match::OnMatch::Action(action)) => notes.field("action", |notes| {
            let any = action.typed_config.ok_or_else(|| Invalid::new("missing").at("typed_config"))?;
            notes.field("typed_config", |notes| settings(notes, &any))
        }),
        _ => Err(Invalid::new("only an action is supported")),
    }
}

fn settings(notes: &mut Notes<'_>, any: &Any) -> Result<QuotaSettings, Invalid> {
    let pb::RateLimitQuotaBucketSettings {
        bucket_id_builder,
        reporting_interval,
        deny_response_settings,
        no_assignment_behavior,
        expired_assignment_behavior,
    } = unpack(any)?;
    let QuotaBesides { bucket, limit, rule, tells_when } = parse(&any.value)?;
    let mut actions = notes.required("bucket_id_builder", bucket_id_builder, id)?;
    if let Some(more) = bucket {
        let more = rate_limits(notes, vec![more])?.pop().ok_or_else(|| Invalid::new("not known here").at("bucket"))?;
        actions.extend(more.actions.iter().cloned());
    }
    actions.sort_by(|a, b| a.key().cmp(b.key()));
    if let Some(twice) = actions.windows(2).find(|two| two.first().map(|a| a.key()) == two.last().map(|a| a.key())) {
        let key = twice.first().map_or("", |action| action.key());
        return Err(Invalid::new(format!("{key:?} is said twice")).at("bucket_id_builder"));
    }
    let interval = notes.required("reporting_interval", reporting_interval, |_, value| duration(&value))?;
    if interval < SHORTEST {
        return Err(Invalid::new(format!("shorter than {SHORTEST:?}")).at("reporting_interval"));
    }
    let fixed = actions.iter().filter_map(|action| match action {
        DescriptorAction::Constant { key, value } => Some(format!("{key}={value}")),
        _ => None,
    });
    let name = if rule.is_empty() { fixed.collect::<Vec<_>>().join(",") } else { rule };
    let limit = if limit.is_empty() { "quota".to_owned() } else { limit };
    let mut settings = QuotaSettings::new(RateLimit::by(actions), interval);
    settings.name = (limit.into(), name.into());
    settings.tells_when = tells_when;
    if let Some(deny) = deny_response_settings {
        notes.field("deny_response_settings", |notes| refusal(notes, deny, &mut settings))?;
    }
    if let Some(behavior) = no_assignment_behavior {
        use pb::rate_limit_quota_bucket_settings::no_assignment_behavior::NoAssignmentBehavior::FallbackRateLimit;
        let Some(FallbackRateLimit(fallback)) = behavior.no_assignment_behavior else {
            return Err(Invalid::new("no known kind of behavior").at("no_assignment_behavior"));
        };
        settings.unassigned = notes.field("no_assignment_behavior", |_| strategy(&fallback))?;
    }
    if let Some(behavior) = expired_assignment_behavior {
        settings.expired = Some(notes.field("expired_assignment_behavior", |_| expired(behavior))?);
    }
    Ok(settings)
}

/// The entries of an ID.
fn id(
    notes: &mut Notes<'_>,
    value: pb::rate_limit_quota_bucket_settings::BucketIdBuilder,
) -> Result<Vec<DescriptorAction>, Invalid> {
    use pb::rate_limit_quota_bucket_settings::bucket_id_builder::value_builder::ValueSpecifier;
    let entries = BTreeMap::from_iter(value.bucket_id_builder).into_iter().map(|(key, value)| {
        let key = Arc::<str>::from(filled("bucket_id_builder", key)?);
        notes.entry("bucket_id_builder", &key, |_| match value.value_specifier {
            Some(ValueSpecifier::StringValue(value)) => {
                let value = filled("string_value", value)?.into();
                Ok(DescriptorAction::Constant { key: Arc::clone(&key), value })
            }
            Some(ValueSpecifier::CustomValue(custom)) => {
                let name = header(&custom.typed_config).map_err(|invalid| invalid.at("custom_value"))?;
                Ok(DescriptorAction::Header { key: Arc::clone(&key), name, skip_if_absent: false })
            }
            None => Err(Invalid::new("no known kind of value")),
        })
    });
    let entries: Vec<_> = entries.collect::<Result<_, Invalid>>()?;
    if entries.is_empty() { Err(Invalid::new("there is no entry")) } else { Ok(entries) }
}

fn refusal(
    notes: &mut Notes<'_>,
    value: pb::rate_limit_quota_bucket_settings::DenyResponseSettings,
    settings: &mut QuotaSettings,
) -> Result<(), Invalid> {
    let pb::rate_limit_quota_bucket_settings::DenyResponseSettings {
        http_status,
        http_body,
        grpc_status,
        response_headers_to_add,
    } = value;
    // As in Envoy, what is no error is 429.
    let status = http_status.and_then(|status| status_from(400, &status));
    settings.status = status.unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    if let Some(status) = grpc_status {
        if !status.message.is_empty() || !status.details.is_empty() {
            notes.ignore("grpc_status.message and details (the message is the body)");
        }
        settings.grpc_code =
            u32::try_from(status.code).map_err(|_| Invalid::new("no code of gRPC").at("grpc_status.code"))?;
    }
    settings.body = http_body.map(|body| body.value.into()).unwrap_or_default();
    let changes = mutations(notes, headers::Lists { response_headers_to_add, ..headers::Lists::default() })?;
    settings.response_changes = changes.response;
    Ok(())
}

fn expired(
    value: pb::rate_limit_quota_bucket_settings::ExpiredAssignmentBehavior,
) -> Result<(ExpiredQuota, Duration), Invalid> {
    use pb::rate_limit_quota_bucket_settings::expired_assignment_behavior::ExpiredAssignmentBehavior as Kind;
    let kind = match value.expired_assignment_behavior {
        Some(Kind::FallbackRateLimit(fallback)) => ExpiredQuota::Fallback(strategy(&fallback)?),
        Some(Kind::ReuseLastAssignment(_)) => ExpiredQuota::Reuse,
        None => return Err(Invalid::new("no known kind of behavior")),
    };
    let time = value.expired_assignment_behavior_timeout.as_ref().map(positive).transpose();
    Ok((kind, time.map_err(|invalid| invalid.at("expired_assignment_behavior_timeout"))?.unwrap_or_default()))
}

/// What a service assigns to a bucket: how many pass, and for how long that holds, if not for ever.
pub(crate) fn assignment(value: &QuotaAssignmentAction) -> Result<(QuotaStrategy, Option<Duration>), Invalid> {
    let ttl = value.assignment_time_to_live.as_ref().map(duration).transpose();
    let strategy = value.rate_limit_strategy.as_ref().map_or(Ok(QuotaStrategy::AllowAll), strategy)?;
    Ok((strategy, ttl.map_err(|invalid| invalid.at("assignment_time_to_live"))?))
}

/// How many pass.
fn strategy(value: &RateLimitStrategy) -> Result<QuotaStrategy, Invalid> {
    Ok(match &value.strategy {
        // As it says of itself.
        None => QuotaStrategy::AllowAll,
        Some(Strategy::BlanketRule(rule)) => match BlanketRule::try_from(*rule) {
            Ok(BlanketRule::AllowAll) => QuotaStrategy::AllowAll,
            Ok(BlanketRule::DenyAll) => QuotaStrategy::DenyAll,
            Err(_) => return Err(Invalid::new("not a known value").at("blanket_rule")),
        },
        Some(Strategy::RequestsPerTimeUnit(RequestsPerTimeUnit { requests_per_time_unit: 0, .. })) => {
            QuotaStrategy::DenyAll
        }
        Some(Strategy::RequestsPerTimeUnit(RequestsPerTimeUnit { requests_per_time_unit: max, time_unit })) => {
            let unit = unit(*time_unit).map_err(|invalid| invalid.at("requests_per_time_unit.time_unit"))?;
            QuotaStrategy::Tokens { max: *max, per_fill: *max, interval: Duration::from_secs(unit.seconds().into()) }
        }
        Some(Strategy::TokenBucket(bucket)) => {
            let interval = bucket.fill_interval.as_ref().ok_or_else(|| Invalid::new("missing"));
            let interval = interval.and_then(positive).map_err(|invalid| invalid.at("token_bucket.fill_interval"))?;
            let per_fill = bucket.tokens_per_fill.map_or(1, |tokens| tokens.value.into());
            QuotaStrategy::Tokens { max: bucket.max_tokens.into(), per_fill, interval }
        }
    })
}
