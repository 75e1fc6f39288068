//! The filters of a table of routes: who is let in, what counts and limits, what the application adds, each built once for the place
//! where it is configured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::authz::Authorizer;
use crate::authz::external::{Asker, MOST_CHECKS};
use crate::error::Invalid;
use crate::filter::{CorsFilter, Filter, FilterRegistry, GlobalLimit, LocalLimit, Quota};
use crate::jwt::Authenticator;
use crate::model::{CorsPolicy, FilterConfig, NamedFilter, QuotaPerRoute, RateLimit, RateLimitPerRoute, Rbac};
use crate::state::States;

/// RBAC filters, in order.
pub(super) type Access = Box<[Arc<Authorizer>]>;

/// The other filters, in order.
pub(super) type Filters = Box<[Arc<dyn Filter>]>;

/// Makes the filters of a table: each once for the place where it is configured, however many routes pass it.
pub(super) struct FilterBuilder<'c> {
    /// The listener's, in order.
    pub(super) filters: &'c [NamedFilter],
    pub(super) registry: &'c FilterRegistry,
    pub(super) states: &'c States,
}

/// The filters that one level of the configuration says something of, by name.
pub(super) type FilterLevel = BTreeMap<Arc<str>, Built>;

/// What one level says of a filter.
#[derive(Clone)]
pub(super) enum Built {
    Off,
    Cors(Arc<CorsPolicy>),
    Limit(LocalLimit),
    Service(GlobalLimit),
    ServiceHere(Arc<RateLimitPerRoute>),
    Quota(Quota),
    QuotaHere(Arc<QuotaPerRoute>),
    Filter(Arc<dyn Filter>),
    Access(Arc<Authorizer>),
}

impl FilterBuilder<'_> {
    /// The listener's own.
    pub(super) fn base(&self, place: &str) -> Result<FilterLevel, Invalid> {
        let filters = self.filters.iter();
        filters.map(|filter| Ok((Arc::clone(&filter.name), self.build(&filter.name, &filter.config, place)?))).collect()
    }

    /// What a virtual host, a route or a weighted cluster says of the listener's filters: mostly nothing, and then nobody asks for
    /// its place.
    pub(super) fn level(
        &self,
        overrides: &BTreeMap<Arc<str>, FilterConfig>,
        place: impl FnOnce() -> String,
    ) -> Result<FilterLevel, Invalid> {
        let mut level = FilterLevel::new();
        if overrides.is_empty() {
            return Ok(level);
        }
        let place = &*place();
        for (name, config) in overrides {
            let Some(filter) = self.filters.iter().find(|filter| filter.name == *name) else { continue };
            let is_condition = matches!(&filter.config, FilterConfig::Rbac(rbac) if is_condition(self.filters, rbac));
            if is_condition || matches!(filter.config, FilterConfig::Jwt(_) | FilterConfig::ExtAuthz(_)) {
                let what = "JWT and ext_authz, and the rules that it is asked by, are for a whole listener";
                return Err(Invalid::new(what).at(format!("filter {name:?}")));
            }
            let is_guard = matches!(filter.config, FilterConfig::Rbac(_));
            // Nothing else may take the place of a guard; to turn it off has to be said.
            if is_guard && !matches!(config, FilterConfig::Rbac(_) | FilterConfig::Disabled) {
                return Err(Invalid::new("only RBAC can stand in its place").at(format!("filter {name:?}")));
            }
            level.insert(Arc::clone(name), self.build(name, config, place)?);
        }
        Ok(level)
    }

    fn build(&self, name: &Arc<str>, config: &FilterConfig, place: &str) -> Result<Built, Invalid> {
        let built = match config {
            // They are asked for as a whole: `authenticator`, `askers`.
            FilterConfig::Jwt(_) | FilterConfig::ExtAuthz(_) => Ok(Built::Off),
            FilterConfig::Rbac(rbac) if is_condition(self.filters, rbac) => match rbac.rules {
                None => Ok(Built::Off),
                Some(_) => {
                    let enforced = Rbac { shadow_rules: None, ..Rbac::clone(rbac) };
                    Authorizer::new(&enforced).map(|access| Built::Access(Arc::new(access)))
                }
            },
            FilterConfig::Rbac(rbac) => Authorizer::new(rbac).map(|access| Built::Access(Arc::new(access))),
            FilterConfig::Cors(policy) => Ok(Built::Cors(Arc::clone(policy))),
            FilterConfig::LocalRateLimit(limit) => {
                // Buckets are as full as they were: nobody else asks what time it is.
                Ok(Built::Limit(LocalLimit::new(limit, &self.states.filter(place, name), Instant::now())))
            }
            FilterConfig::RateLimit(limit) => {
                let state = self.states.filter(place, name);
                Ok(Built::Service(GlobalLimit::new(limit, self.registry.rate_limits(), &state)))
            }
            FilterConfig::RateLimitPerRoute(here) => Ok(Built::ServiceHere(Arc::clone(here))),
            FilterConfig::RateLimitQuota(quota) => {
                let (quotas, state) = (self.registry.quotas(), self.states.filter(place, name));
                Quota::new(quota, quotas, &state).map(Built::Quota)
            }
            FilterConfig::QuotaPerRoute(here) => Ok(Built::QuotaHere(Arc::clone(here))),
            config => {
                let built = self.registry.build(config, &self.states.filter(place, name));
                built.map(|filter| filter.map_or(Built::Off, Built::Filter))
            }
        };
        built.map_err(|invalid| invalid.at(format!("filter {name:?}")))
    }

    /// Those that come before others look at tokens, and before they say who may do what.
    pub(super) fn early(&self, base: &FilterLevel) -> Option<Arc<[Filters; 2]>> {
        let of_stage = |stage: usize| -> Filters {
            let named =
                self.filters.iter().enumerate().filter(|(place, _)| early_stage(self.filters, *place) == Some(stage));
            let built = named.filter_map(|(_, filter)| match base.get(&filter.name) {
                Some(Built::Filter(filter)) => Some(Arc::clone(filter)),
                _ => None,
            });
            built.collect()
        };
        let early = [of_stage(0), of_stage(1)];
        early.iter().any(|filters| !filters.is_empty()).then(|| Arc::new(early))
    }

    /// The listener's filters with the most specific override of each (gRFC A39), those that decide who is let in apart.
    /// The most specific level is first. A route that answers itself has no cross-origin rules, as in Envoy.
    pub(super) fn effective(
        &self,
        levels: &[&FilterLevel],
        is_answered: bool,
        limits: &RouteLimits<'_>,
    ) -> Result<(Filters, Access), Invalid> {
        let (mut filters, mut access) = (Vec::<Arc<dyn Filter>>::new(), Vec::new());
        for (place, filter) in self.filters.iter().enumerate() {
            if early_stage(self.filters, place).is_some() {
                continue;
            }
            match levels.iter().find_map(|level| level.get(&filter.name)) {
                Some(Built::Cors(policy)) if !is_answered => filters.extend(cors(policy, &filter.name, levels)),
                Some(Built::Limit(limit)) if !limit.is_idle() => {
                    let (of_route, of_host) = *limits;
                    filters.push(Arc::new(limit.filter(of_route, of_host)?));
                }
                Some(Built::Service(limit)) => filters.extend(service(limit, None, limits)?),
                Some(Built::ServiceHere(here)) => {
                    // The listener's own is the last level.
                    let own = levels.iter().rev().find_map(|level| level.get(&filter.name));
                    if let Some(Built::Service(limit)) = own {
                        filters.extend(service(limit, Some(here), limits)?);
                    }
                }
                Some(Built::Quota(quota)) => filters.extend(quota.filter()),
                Some(Built::QuotaHere(here)) => {
                    let own = levels.iter().rev().find_map(|level| level.get(&filter.name));
                    if let Some(Built::Quota(quota)) = own {
                        let state = self.states.filter("", &filter.name);
                        filters.extend(quota.here(here, self.registry.quotas(), &state)?.filter());
                    }
                }
                Some(Built::Filter(filter)) => filters.push(Arc::clone(filter)),
                Some(Built::Access(filter)) => access.push(Arc::clone(filter)),
                Some(Built::Off | Built::Cors(_) | Built::Limit(_)) | None => {}
            }
        }
        Ok((filters.into(), access.into()))
    }
}

/// What the requests of a route are counted by: as the route says, with whether the virtual host counts besides, and as that
/// says.
pub(super) type RouteLimits<'c> = ((&'c [Arc<RateLimit>], bool), &'c [Arc<RateLimit>]);

/// The filter of a route that asks a rate limit service about its requests, if it asks.
fn service(
    limit: &GlobalLimit,
    here: Option<&Arc<RateLimitPerRoute>>,
    limits: &RouteLimits<'_>,
) -> Result<Option<Arc<dyn Filter>>, Invalid> {
    let filter = limit.filter(here.map(|here| &**here), *limits)?;
    Ok(filter.map(|filter| Arc::new(filter) as Arc<dyn Filter>))
}

/// The one filter for cross-origin requests that says what no level has to say alone: each completes the one below it.
/// `None` where no request makes a difference to it.
fn cors(policy: &Arc<CorsPolicy>, name: &Arc<str>, levels: &[&FilterLevel]) -> Option<Arc<dyn Filter>> {
    let said = levels.iter().filter_map(|level| level.get(name)).skip(1);
    let above: Vec<_> =
        said.map_while(|built| if let Built::Cors(above) = built { Some(above) } else { None }).collect();
    let policy = match above.iter().all(|above| **above == Arc::default()) {
        true => Arc::clone(policy),
        false => Arc::new(above.into_iter().fold(CorsPolicy::clone(policy), |policy, above| policy.or(above))),
    };
    (!policy.is_idle()).then(|| Arc::new(CorsFilter::new(&policy)) as Arc<dyn Filter>)
}

/// The one JWT filter of a listener. Two would each take the other's token for somebody's who is not known.
pub(super) fn authenticator(filters: &[NamedFilter]) -> Result<Option<Arc<Authenticator>>, Invalid> {
    let mut all = filters.iter().filter_map(|filter| match &filter.config {
        FilterConfig::Jwt(config) => Some((&filter.name, config)),
        _ => None,
    });
    let Some((name, config)) = all.next() else { return Ok(None) };
    let at = |name: &str| format!("filter {name:?}");
    match all.next() {
        Some((other, _)) => Err(Invalid::new("a second JWT filter is not supported").at(at(other))),
        None => Ok(Some(Arc::new(Authenticator::new(config).map_err(|invalid| invalid.at(at(name)))?))),
    }
}

/// The ext_authz filters of a listener, each with the rules that say which requests it is for.
pub(super) fn askers(filters: &[NamedFilter], states: &States, listener: &str) -> Result<Arc<[Asker]>, Invalid> {
    let all = filters.iter().filter_map(|filter| match &filter.config {
        FilterConfig::ExtAuthz(config) => Some((filter, config)),
        _ => None,
    });
    let all = all.map(|(filter, config)| {
        let rules = match &config.asked_by {
            None => None,
            Some(prefix) => {
                let before = filters.iter().take_while(|other| other.name != filter.name);
                let mut rules = before.filter_map(|other| match &other.config {
                    FilterConfig::Rbac(rbac) if rbac.shadow_prefix == *prefix => rbac.shadow_rules.as_ref(),
                    _ => None,
                });
                let rules = rules.next().ok_or_else(|| {
                    Invalid::new(format!("no RBAC filter before it notes what its shadow rules decide as {prefix:?}"))
                })?;
                Some(rules)
            }
        };
        // By whom is asked, too: those who wait for somebody else are no reason not to ask.
        let name: Arc<str> = format!("{}/{}", filter.name, config.target).into();
        let permits = states.filter(listener, &name).get(|| Semaphore::new(MOST_CHECKS));
        Asker::new(config, rules, permits).map_err(|invalid| invalid.at(format!("filter {:?}", filter.name)))
    });
    all.collect()
}

/// Whether the shadow rules of an RBAC filter say who is asked, and are not tried.
fn is_condition(filters: &[NamedFilter], rbac: &Rbac) -> bool {
    !rbac.shadow_prefix.is_empty()
        && filters.iter().any(|filter| match &filter.config {
            FilterConfig::ExtAuthz(config) => config.asked_by.as_ref() == Some(&rbac.shadow_prefix),
            _ => false,
        })
}

/// Whether a plugin stands before filters that look at tokens (0), or before those that say who may do what (1): it may be what
/// makes their headers good. Other filters come after them, wherever they stand.
fn early_stage(filters: &[NamedFilter], place: usize) -> Option<usize> {
    let (filter, after) = filters.get(place..)?.split_first()?;
    let is_before = |is_one: fn(&FilterConfig) -> bool| after.iter().any(|filter| is_one(&filter.config));
    match filter.config {
        FilterConfig::Plugin(_) if is_before(|config| matches!(config, FilterConfig::Jwt(_))) => Some(0),
        FilterConfig::Plugin(_) => {
            is_before(|config| matches!(config, FilterConfig::Rbac(_) | FilterConfig::ExtAuthz(_))).then_some(1)
        }
        _ => None,
    }
}
