//! What expressions and filters find out about a request that is over, by Envoy's attributes.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use serde_json::{Map, Value};

use crate::jwt;
use crate::model::{CelAttribute, CelValue, Facts, LogFilter, protocol};
use crate::request::is_authority;
use crate::request_info::{Direction, Heads, RequestInfo};

/// A request that ended now.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ended<'a> {
    /// The request.
    pub request: &'a RequestInfo,
    /// How long it took.
    pub took: Duration,
    /// The time.
    pub now: SystemTime,
    /// What the node of this process says of itself.
    pub node: &'a Map<String, Value>,
}

impl<'a> Ended<'a> {
    /// A request that took so long, and ended now, in the process of this node.
    pub fn new(request: &'a RequestInfo, took: Duration, now: SystemTime, node: &'a Map<String, Value>) -> Ended<'a> {
        Ended { request, took, now, node }
    }

    /// Whether an access log with this filter has the request.
    pub fn is_in(&self, filter: &LogFilter) -> bool {
        match filter {
            LogFilter::Expression(expression) => expression.holds(self),
            LogFilter::Status(comparison, status) => comparison.holds(u32::from(self.request.response_code()), *status),
            LogFilter::Duration(comparison, than) => comparison.holds(self.took.as_millis(), than.as_millis()),
            LogFilter::Flags(flags) => {
                let own = self.request.response_flags();
                let is_one = |code: &str| flags.is_empty() || flags.iter().any(|flag| flag == code);
                own.codes().any(is_one)
            }
            // The same for every log of a request.
            LogFilter::Sample(share) => share.contains(self.request.random.clone().u32(0..1_000_000)),
            LogFilter::All(all) => all.iter().all(|filter| self.is_in(filter)),
            LogFilter::Any(any) => any.iter().any(|filter| self.is_in(filter)),
        }
    }

    fn heads(&self) -> Option<&'a Heads> {
        self.request.head()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        text_of(&self.heads()?.request, name)
    }
}

/// All values of a header, as Envoy's attributes have them: who says a thing after another one does not get around a filter.
fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, str>> {
    let mut values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let first = values.next()?;
    Some(values.fold(first, |all, value| format!("{all},{value}").into()))
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn int(number: impl TryInto<i64>) -> CelValue<'static> {
    CelValue::Int(number.try_into().unwrap_or(i64::MAX))
}

impl Facts for Ended<'_> {
    fn get(&self, attribute: CelAttribute) -> Option<CelValue<'_>> {
        let request = self.request;
        let text = |text: &str| (!text.is_empty()).then(|| CelValue::Text(text.to_owned().into()));
        let borrowed = |text| CelValue::Text(text);
        // Envoy's "downstream" of a client is its own application, which has no address.
        let remote = || request.peer();
        let local = || self.heads()?.local;
        // A connection that is not HTTP has none.
        let path = || self.heads().map(|heads| &*heads.path).filter(|path| !path.is_empty());
        Some(match attribute {
            CelAttribute::RequestMethod => borrowed(request.method()?.as_str().into()),
            CelAttribute::RequestPath => borrowed(path()?.into()),
            CelAttribute::RequestUrlPath => borrowed(path()?.split('?').next()?.into()),
            CelAttribute::RequestQuery => borrowed(path()?.split_once('?').map_or("", |(_, query)| query).into()),
            CelAttribute::RequestHost => text(request.authority())?,
            CelAttribute::RequestReferer => borrowed(self.header("referer")?),
            CelAttribute::RequestUserAgent => borrowed(self.header("user-agent")?),
            CelAttribute::RequestId => borrowed(self.header("x-request-id")?),
            CelAttribute::RequestProtocol if request.is_bytes() => return None,
            CelAttribute::RequestProtocol => borrowed(protocol(self.heads()?.version).into()),
            CelAttribute::RequestTime => {
                let began = self.now.checked_sub(self.took).unwrap_or(self.now);
                CelValue::Time(nanos(began.duration_since(UNIX_EPOCH).unwrap_or_default()))
            }
            CelAttribute::RequestDuration => CelValue::Duration(nanos(self.took)),
            CelAttribute::RequestSize => int(request.request_bytes()),
            CelAttribute::ResponseCode => int(Some(request.response_code()).filter(|code| *code > 0)?),
            CelAttribute::ResponseCodeDetails => text(request.response_details())?,
            CelAttribute::ResponseFlags => int(request.response_flags().envoys_bits()),
            CelAttribute::ResponseGrpcStatus => int(request.grpc_response_status()?),
            CelAttribute::ResponseSize => int(request.response_bytes()),
            CelAttribute::ResponseBackendLatency => CelValue::Duration(nanos(self.heads()?.upstream_time?)),
            CelAttribute::SourceAddress => text(&remote()?.to_string())?,
            CelAttribute::SourcePort => int(remote()?.port()),
            CelAttribute::DestinationAddress => text(&local()?.to_string())?,
            CelAttribute::DestinationPort => int(local()?.port()),
            CelAttribute::ConnectionMtls => {
                CelValue::Bool(request.direction() == Some(Direction::Inbound) && request.is_secured())
            }
            CelAttribute::ConnectionServerName => text(self.heads()?.server_name.as_deref()?)?,
            CelAttribute::ConnectionPeer => text(request.client_identity()?.as_str())?,
            CelAttribute::SourcePrincipal => text(request.client_identity()?.as_str().strip_prefix("spiffe://")?)?,
            CelAttribute::SourceNamespace => text(request.client_identity()?.workload()?.0)?,
            CelAttribute::RequestPrincipal => text(jwt::principal(request.tokens()).ok()??)?,
            CelAttribute::UpstreamAddress => text(&request.endpoint()?.id().to_string())?,
            CelAttribute::UpstreamPort => {
                int(request.endpoint()?.id().to_string().rsplit_once(':')?.1.parse::<u16>().ok()?)
            }
            CelAttribute::UpstreamAttempts => int(request.attempts),
            CelAttribute::ClusterName => text(request.cluster()?.as_str())?,
            CelAttribute::RouteName => text(request.route()?)?,
            CelAttribute::RequestHeaders
            | CelAttribute::ResponseHeaders
            | CelAttribute::ResponseTrailers
            | CelAttribute::NodeMetadata
            | CelAttribute::RequestClaims => return None,
        })
    }

    fn entry(&self, map: CelAttribute, key: &str) -> Option<Cow<'_, str>> {
        match (map, key) {
            (CelAttribute::RequestHeaders, ":method") => Some(self.request.method()?.as_str().into()),
            (CelAttribute::RequestHeaders, ":path") => {
                Some(&*self.heads()?.path).filter(|path| !path.is_empty()).map(Cow::Borrowed)
            }
            (CelAttribute::RequestHeaders, name) if is_authority(name) => {
                Some(self.request.authority()).filter(|authority| !authority.is_empty()).map(Cow::Borrowed)
            }
            (CelAttribute::RequestHeaders, name) => self.header(name),
            (CelAttribute::ResponseHeaders, name) => text_of(&self.heads()?.response, name),
            (CelAttribute::ResponseTrailers, name) => text_of(&self.heads()?.trailers, name),
            (CelAttribute::NodeMetadata, key) => Some(self.node.get(key)?.as_str()?.into()),
            (CelAttribute::RequestClaims, name) => jwt::claim_text(self.request.tokens(), name).ok()?,
            _ => None,
        }
    }

    fn has_entry(&self, map: CelAttribute, key: &str) -> bool {
        match map {
            CelAttribute::RequestClaims => matches!(jwt::claim(self.request.tokens(), key), Ok(Some(_))),
            _ => self.entry(map, key).is_some(),
        }
    }

    fn has_item(&self, map: CelAttribute, key: &str, item: &str) -> Option<bool> {
        match map {
            CelAttribute::RequestClaims => jwt::claim_has(self.request.tokens(), key, item).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{Method, StatusCode, Version};
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;
    use crate::model::{CelExpression, Comparison, Fraction};
    use crate::request_info::Observers;

    /// `POST /a?b=1` to `reviews:9080`, which failed for want of a healthy endpoint.
    fn failed() -> RequestInfo {
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.observe(&Observers::from([]), Direction::Inbound, &Method::POST);
        request.note_authority("reviews:9080");
        let headers = [("x-user", "jason"), ("x-twice", "a"), ("x-twice", "b")];
        let headers =
            headers.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        request.note_head("/a?b=1", Version::HTTP_2, &headers);
        request.note_peer("10.0.0.1:5".parse().unwrap());
        request.note_source(None, true);
        request.note_request_body(7, Default::default());
        request.note_response(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), true);
        request.note_error(ErrorKind::NoHealthyEndpoint);
        request
    }

    fn is_in(filter: &LogFilter) -> bool {
        let request = failed();
        let node = json!({"CLUSTER_ID": "east"});
        let took = Duration::from_millis(1500);
        Ended::new(&request, took, UNIX_EPOCH + Duration::from_secs(9), node.as_object().unwrap()).is_in(filter)
    }

    #[test]
    fn an_expression_finds_every_attribute_where_envoy_has_it() {
        for text in [
            "request.method == 'POST' && request.host == 'reviews:9080'",
            "request.path == '/a?b=1' && request.url_path == '/a' && request.query == 'b=1'",
            "request.headers['x-user'] == 'jason' && request.headers['X-User'] == 'jason'",
            "request.headers['x-twice'] == 'a,b' && request.headers['host'] == request.host",
            "request.headers[':path'] == request.path && request.headers[':method'] == request.method",
            "request.headers[':authority'] == request.host && request.headers['Host'] == request.host",
            "has(request.headers.host) && 'host' in request.headers",
            "request.protocol == 'HTTP/2' && request.size == 7",
            "request.duration == duration('1.5s') && int(request.time) == 7",
            "response.code == 503 && response.flags == 2 && response.code_details == 'no_healthy_upstream'",
            "source.address == '10.0.0.1:5' && source.port == 5 && connection.mtls",
            "node.metadata['CLUSTER_ID'] == 'east' && !has(node.metadata['X'])",
            "!has(xds.cluster_name) && !has(upstream.address) && !has(response.grpc_status) && !has(request.useragent)",
        ] {
            let expression = CelExpression::condition(text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert!(is_in(&LogFilter::Expression(expression)), "{text}");
        }
    }

    #[test]
    fn envoys_own_filters_choose_as_there() {
        let flags = |flags: &[&str]| LogFilter::Flags(flags.iter().map(|&flag| flag.to_owned()).collect());
        let least = LogFilter::Status(Comparison::AtLeast, 500);
        let most = LogFilter::Status(Comparison::AtMost, 500);
        for (filter, expected) in [
            (least.clone(), true),
            (most.clone(), false),
            (LogFilter::Status(Comparison::Unequal, 503), false),
            (LogFilter::Duration(Comparison::AtLeast, Duration::from_millis(1500)), true),
            (flags(&[]), true),
            (flags(&["UF", "UH"]), true),
            (flags(&["UF"]), false),
            (LogFilter::Sample(Fraction::ALL), true),
            (LogFilter::Sample(Fraction::new(0, 100)), false),
            (LogFilter::All(vec![least.clone(), most.clone()]), false),
            (LogFilter::Any(vec![least, most]), true),
            (LogFilter::All(Vec::new()), true),
        ] {
            assert_eq!(is_in(&filter), expected, "{filter:?}");
        }
    }
}
