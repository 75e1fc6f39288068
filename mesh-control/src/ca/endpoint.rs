//! Where the bundle of a foreign trust domain is fetched (SPIFFE Federation, 5), and the fetches.
//!
//! Of an endpoint it has to be known whose bundle is there, how the endpoint proves that it is the one that is meant, and where it is:
//! none of these says anything of the others (7.2).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Uri;
use http::uri::Scheme;
use hyper::body::Bytes;
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::tls::{SpiffeBundle, TrustBundles, spiffe_config};
use tokio::time::{Instant, timeout};

use super::CertificateAuthority;
use crate::fetch::{Fetcher, Schedule, Trust, UnderWay, Wanted};

/// How often a bundle that does not say so is looked for a later one (SPIFFE Federation, 4.1).
pub(super) const REFRESH: Duration = Duration::from_secs(300);
/// A bundle may say so within these: nobody hears of a revoked root only after days, and a partner has streams of the whole mesh end,
/// by roots that are others each time, no more often than this.
const LEAST_REFRESH: Duration = Duration::from_secs(60);
const MOST_REFRESH: Duration = Duration::from_secs(24 * 3600);
/// How long a fetch may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the bundle of a foreign trust domain is fetched.
///
/// ```
/// use mesh_control::ca::BundleEndpoint;
///
/// let partner = "partner.example".parse()?;
/// let web = BundleEndpoint::web(partner, "https://partner.example/bundle.json")?;
/// assert!(BundleEndpoint::web(web.trust_domain, "http://partner.example/bundle.json").is_err());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BundleEndpoint {
    /// Whose bundle is there.
    pub trust_domain: TrustDomain,
    /// Where it is.
    pub url: Uri,
    /// How the endpoint proves that it is the one that is meant.
    pub profile: EndpointProfile,
    /// The authorities that vouch for hosts (`https_web`), as PEM; those of the system unless set.
    pub roots: Option<PathBuf>,
    /// How often it is asked at most, whatever it says: once a minute unless set.
    pub least_refresh: Duration,
}

/// How an endpoint proves that it is the one that is meant. Exhaustive: one more is one more way to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// By a certificate for the name of its host, as servers of the web do (`https_web`).
    Web,
    /// By being this workload (`https_spiffe`), as the bundle that is in force of its trust domain has it.
    Spiffe(SpiffeId),
}

impl BundleEndpoint {
    /// One of the profile `https_web`.
    ///
    /// # Errors
    /// The URL is not one of HTTPS, or has a user.
    pub fn web(trust_domain: TrustDomain, url: &str) -> anyhow::Result<BundleEndpoint> {
        BundleEndpoint::new(trust_domain, url, EndpointProfile::Web)
    }

    /// One of the profile `https_spiffe`: this workload.
    ///
    /// # Errors
    /// The URL is not one of HTTPS, or has a user.
    pub fn spiffe(trust_domain: TrustDomain, server: SpiffeId, url: &str) -> anyhow::Result<BundleEndpoint> {
        BundleEndpoint::new(trust_domain, url, EndpointProfile::Spiffe(server))
    }

    /// Trusts these authorities; see [`roots`](field@Self::roots).
    pub fn roots(mut self, file: impl Into<Option<PathBuf>>) -> BundleEndpoint {
        self.roots = file.into();
        self
    }

    /// Asks it so often at most; see [`least_refresh`](field@Self::least_refresh).
    pub fn least_refresh(mut self, every: Duration) -> BundleEndpoint {
        self.least_refresh = every;
        self
    }

    fn new(trust_domain: TrustDomain, url: &str, profile: EndpointProfile) -> anyhow::Result<BundleEndpoint> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        ensure!(uri.scheme() == Some(&Scheme::HTTPS), "{url}: a bundle is fetched by https:// alone");
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        ensure!(!authority.contains('@'), "{url}: there is a user in it");
        Ok(BundleEndpoint { trust_domain, url: uri, profile, roots: None, least_refresh: LEAST_REFRESH })
    }
}

/// How long this bundle is taken for the latest one, if it is one.
fn refresh(text: &[u8], least: Duration) -> Option<Duration> {
    let hint = SpiffeBundle::from_json(text).ok()?.refresh_hint;
    Some(hint.unwrap_or(REFRESH).max(least).min(MOST_REFRESH))
}

impl CertificateAuthority {
    /// Fetches the bundles of foreign trust domains, again and again, for as long as it is polled. What comes of it counts with the
    /// next look ([`CertificateAuthority::look_for_trust`]).
    pub(crate) async fn fetch_bundles(&self) {
        let mut schedule: Schedule<TrustDomain, ()> = Schedule::new().patient();
        let mut under_way = UnderWay::new();
        let endpoints = self.federation.endpoints();
        let wanted = endpoints.iter().map(|endpoint| {
            let wanted = Wanted { timeout: LIMIT, refresh: REFRESH };
            (endpoint.trust_domain.clone(), wanted)
        });
        schedule.want(&wanted.collect(), &mut BTreeMap::new(), Instant::now());
        while !endpoints.is_empty() {
            let ended = under_way.next(&mut schedule, |domain, limit| self.fetch_bundle(&domain, limit)).await;
            let Some((domain, fetched)) = ended else { continue };
            let least = endpoints.iter().find(|endpoint| endpoint.trust_domain == domain);
            let least = least.map_or(LEAST_REFRESH, |endpoint| endpoint.least_refresh);
            if let Some(refresh) = fetched.as_ref().ok().and_then(|text| refresh(text, least)) {
                schedule.refresh(&domain, refresh);
            }
            let outcome = fetched.as_ref().map(|_| ()).map_err(Clone::clone);
            self.federation.offer(&domain, fetched.map(Vec::from));
            schedule.done(&domain, outcome, Instant::now(), fastrand::f64());
        }
    }

    /// What is at the endpoint of this trust domain.
    fn fetch_bundle(
        &self,
        domain: &TrustDomain,
        limit: Duration,
    ) -> impl Future<Output = Result<Bytes, String>> + Send + use<> {
        let endpoint = self.federation.endpoints().into_iter().find(|endpoint| endpoint.trust_domain == *domain);
        let asked = endpoint.map(|endpoint| (self.fetcher(&endpoint), endpoint.url.to_string()));
        async move {
            let (fetcher, url) = asked.ok_or("it has no endpoint")?;
            let fetcher = fetcher.map_err(|why| format!("{url}: {why:#}"))?;
            let fetched = timeout(limit, fetcher.get(&url)).await;
            fetched.unwrap_or_else(|_| Err(format!("{url} did not answer within {limit:?}")))
        }
    }

    /// Waits until something was fetched that was not looked at.
    pub(crate) async fn fetched_bundles(&self) {
        self.federation.offered().await;
    }

    fn fetcher(&self, endpoint: &BundleEndpoint) -> anyhow::Result<Fetcher> {
        let trust = match &endpoint.profile {
            EndpointProfile::Web => Trust::Web(endpoint.roots.clone()),
            EndpointProfile::Spiffe(server) => {
                let domain: TrustDomain = server.trust_domain().parse()?;
                let roots = if domain == self.trust_domain() {
                    Some(self.current.load().bundle_pem())
                } else {
                    self.federation.roots().get(domain.as_str()).cloned()
                };
                let roots =
                    roots.with_context(|| format!("nobody vouches for {server}: no bundle of {domain} is in force"))?;
                let mut bundles = TrustBundles::new();
                bundles.add_pem(domain, roots.as_bytes())?;
                Trust::By(Arc::new(spiffe_config(bundles, server.clone())?))
            }
        };
        Ok(Fetcher::new(trust).by_operator(&endpoint.url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_reached_by_https_and_by_nobodys_name() {
        let domain: TrustDomain = "partner.example".parse().expect("a domain");
        for url in ["https://partner.example", "https://10.0.0.1:8443/bundle.json?of=partner", "https://[::1]:8443/"] {
            BundleEndpoint::web(domain.clone(), url).expect(url);
        }
        let server: SpiffeId = "spiffe://partner.example/bundles".parse().expect("an ID");
        for url in [
            "http://partner.example/",
            "partner.example",
            "/bundle.json",
            "https://me@partner.example/",
            "file:///b",
            "",
        ] {
            BundleEndpoint::web(domain.clone(), url).expect_err(url);
            BundleEndpoint::spiffe(domain.clone(), server.clone(), url).expect_err(url);
        }
    }

    #[test]
    fn a_bundle_is_fetched_as_often_as_it_says_or_every_five_minutes() {
        let of = |hint: &str| {
            refresh(format!("{{\"keys\": []{hint}}}").as_bytes(), LEAST_REFRESH).map(|every| every.as_secs())
        };
        assert_eq!(of(""), Some(300));
        assert_eq!(of(", \"spiffe_refresh_hint\": 90"), Some(90));
        assert_eq!(of(", \"spiffe_refresh_hint\": 0"), Some(60), "nobody has himself asked all the time");
        assert_eq!(of(&format!(", \"spiffe_refresh_hint\": {}", u64::MAX)), Some(24 * 3600));
        assert_eq!(refresh(b"<html>", LEAST_REFRESH), None);
    }
}
