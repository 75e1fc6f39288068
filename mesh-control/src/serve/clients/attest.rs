//! Who asks for a certificate, and how that was proven: a plain function of the connection and the request.

use std::fmt;
use std::net::IpAddr;

use mesh_core::identity::{SpiffeId, TrustDomain};

/// What a connection and a request's headers say of who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) ip: IpAddr,
    /// Whether the connection is encrypted.
    pub(crate) is_secured: bool,
    /// The identity in the client certificate, if it showed one that is of this mesh and live; else why it is not.
    pub(crate) certificate: Option<Result<SpiffeId, String>>,
    /// What came in `authorization`, behind `Bearer`.
    pub(crate) bearer: Option<String>,
    /// Whose that is as a service account token, where it was shown to the API server of Kubernetes; else why it is nobody's.
    pub(crate) reviewed: Option<Result<SpiffeId, String>>,
}

/// Who a request says the certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) namespace: Option<String>,
    pub(crate) service_account: Option<String>,
    /// Whether it asks in the name of somebody else (Istio's `ImpersonatedIdentity`).
    pub(crate) impersonates: bool,
}

/// How an identity was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Not at all: on this machine, in development mode.
    Development,
    /// By a live certificate of the same identity.
    Renewal,
    /// By a one-time token.
    Token,
    /// By a service account token.
    Kubernetes,
    /// By a live certificate of the same identity, over Envoy's secret discovery service: with a key of the server's making.
    Secret,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Development => "development",
            Method::Renewal => "renewal",
            Method::Token => "token",
            Method::Kubernetes => "kubernetes",
            Method::Secret => "secret",
        })
    }
}

/// Whose word counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attested {
    /// This identity, proven like this.
    Identity(SpiffeId, Method),
    /// That of this token, if there is one, and it fits the claim.
    ByToken(String),
}

/// Why a certificate is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Nobody knows who asks.
    Unauthenticated(String),
    /// It is known who asks, and it is not theirs to have.
    Forbidden(String),
}

impl Caller {
    /// The token that counts: it is not read by others on its way, and there is no certificate that goes before it.
    pub(crate) fn token(&self) -> Option<&str> {
        let may_be_sent = self.is_secured || self.ip.to_canonical().is_loopback();
        let has_certificate = matches!(self.certificate, Some(Ok(_)));
        self.bearer.as_deref().filter(|_| may_be_sent && !has_certificate)
    }
}

/// Decides who asks. A certificate goes before a token, so that a token is not spent without need; where either was
/// shown and is wrong, nothing else is tried.
pub(crate) fn attest(caller: &Caller, claim: &Claim, domain: &TrustDomain, is_dev: bool) -> Result<Attested, Denied> {
    if claim.impersonates {
        return Err(Denied::Forbidden("certificates in the name of somebody else are not issued".to_owned()));
    }
    let is_local = caller.ip.to_canonical().is_loopback();
    match (&caller.certificate, &caller.bearer) {
        (Some(Ok(identity)), _) => {
            fits(claim, identity)?;
            Ok(Attested::Identity(identity.clone(), Method::Renewal))
        }
        (_, Some(_)) if !caller.is_secured && !is_local => {
            Err(Denied::Unauthenticated("a token has to come over TLS: others may have read it".to_owned()))
        }
        (_, Some(token)) => match &caller.reviewed {
            None => Ok(Attested::ByToken(token.clone())),
            Some(Err(why)) => Err(Denied::Unauthenticated(why.clone())),
            Some(Ok(identity)) => {
                fits(claim, identity)?;
                Ok(Attested::Identity(identity.clone(), Method::Kubernetes))
            }
        },
        (Some(Err(why)), None) => {
            Err(Denied::Unauthenticated(format!("the client certificate is not a live one of this mesh: {why}")))
        }
        (None, None) if is_dev && is_local => {
            let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "default".to_owned());
            let (namespace, account) = (named(&claim.namespace), named(&claim.service_account));
            let identity = SpiffeId::of_workload(domain, &namespace, &account);
            let identity =
                identity.map_err(|why| Denied::Unauthenticated(format!("nobody can be called so: {why}")))?;
            Ok(Attested::Identity(identity, Method::Development))
        }
        (None, None) if is_dev => {
            let why = "development mode gives certificates to connections of this machine only";
            Err(Denied::Unauthenticated(why.to_owned()))
        }
        (None, None) => {
            let why = "show a live certificate of this mesh over TLS, or a token of `mesh-control token create`";
            Err(Denied::Unauthenticated(why.to_owned()))
        }
    }
}

/// Whether a request asks for no other name than its own.
pub(crate) fn fits(claim: &Claim, identity: &SpiffeId) -> Result<(), Denied> {
    let own = identity.workload();
    let (namespace, account) = (own.map(|own| own.0), own.map(|own| own.1));
    let is_own = |claimed: &Option<String>, own: Option<&str>| claimed.is_none() || claimed.as_deref() == own;
    if is_own(&claim.namespace, namespace) && is_own(&claim.service_account, account) {
        return Ok(());
    }
    let asked = |claimed: &Option<String>| claimed.clone().unwrap_or_else(|| "-".to_owned());
    let asked = format!("{:?}/{:?}", asked(&claim.namespace), asked(&claim.service_account));
    Err(Denied::Forbidden(format!("{identity} asks for a certificate of {asked}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn id(text: &str) -> SpiffeId {
        text.parse().expect("an ID")
    }

    fn caller(ip: &str) -> Caller {
        let ip = ip.parse().expect("an address");
        Caller { ip, is_secured: false, certificate: None, bearer: None, reviewed: None }
    }

    fn claim(namespace: &str, account: &str) -> Claim {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Claim { namespace: said(namespace), service_account: said(account), impersonates: false }
    }

    fn by(caller: &Caller, claim: &Claim, is_dev: bool) -> Result<Attested, Denied> {
        attest(caller, claim, &"cluster.local".parse().expect("a domain"), is_dev)
    }

    #[test]
    fn in_development_everybody_on_this_machine_is_who_they_say() {
        let dev = |ip: &str, claim: &Claim| by(&caller(ip), claim, true);
        let named = |text: &str| Ok(Attested::Identity(id(text), Method::Development));
        assert_eq!(dev("127.0.0.1", &claim("shop", "web")), named(WEB));
        assert_eq!(dev("::1", &claim("", "")), named("spiffe://cluster.local/ns/default/sa/default"));
        assert_eq!(dev("::ffff:127.0.0.1", &claim("", "web")), named("spiffe://cluster.local/ns/default/sa/web"));
        for (namespace, account) in [("../x", "web"), ("shop", "a/b"), ("shop", "a%2f"), ("shop", " ")] {
            assert!(matches!(dev("127.0.0.1", &claim(namespace, account)), Err(Denied::Unauthenticated(_))));
        }
        assert!(matches!(dev("192.0.2.1", &claim("shop", "web")), Err(Denied::Unauthenticated(_))));
        let local = caller("127.0.0.1");
        assert!(matches!(by(&local, &claim("shop", "web"), false), Err(Denied::Unauthenticated(_))), "without --dev");
    }

    #[test]
    fn c1_a_certificate_renews_its_own_identity_and_no_other() {
        let web = Caller { certificate: Some(Ok(id(WEB))), is_secured: true, ..caller("192.0.2.1") };
        let renewed = Ok(Attested::Identity(id(WEB), Method::Renewal));
        for (namespace, account) in [("", ""), ("shop", "web"), ("shop", ""), ("", "web")] {
            assert_eq!(by(&web, &claim(namespace, account), false), renewed);
        }
        for (namespace, account) in [("pay", "web"), ("shop", "root"), ("pay", ""), ("", "root")] {
            let denied = by(&web, &claim(namespace, account), true);
            assert!(matches!(denied, Err(Denied::Forbidden(_))), "{denied:?}");
        }
        let other = Caller { certificate: Some(Ok(id("spiffe://cluster.local/control"))), ..web };
        assert!(by(&other, &claim("", ""), false).is_ok());
        assert!(matches!(by(&other, &claim("shop", "web"), false), Err(Denied::Forbidden(_))));
    }

    #[test]
    fn a_certificate_that_does_not_count_is_not_passed_over_in_development() {
        let stranger = Caller { certificate: Some(Err("of another authority".to_owned())), ..caller("127.0.0.1") };
        assert!(matches!(by(&stranger, &claim("shop", "web"), true), Err(Denied::Unauthenticated(_))));
    }

    #[test]
    fn a_token_is_taken_over_tls_or_on_this_machine_and_not_spent_beside_a_certificate() {
        let token = || Some("t".to_owned());
        let by_token = Ok(Attested::ByToken("t".to_owned()));
        let local = Caller { bearer: token(), ..caller("127.0.0.1") };
        assert_eq!(by(&local, &Claim::default(), true), by_token, "a token that was shown has to be right");
        let plain = Caller { bearer: token(), ..caller("192.0.2.1") };
        assert!(matches!(by(&plain, &Claim::default(), false), Err(Denied::Unauthenticated(_))));
        let secured = Caller { is_secured: true, ..plain };
        assert_eq!(by(&secured, &Claim::default(), false), by_token);
        let both = Caller { certificate: Some(Ok(id(WEB))), ..secured.clone() };
        assert_eq!(by(&both, &Claim::default(), false), Ok(Attested::Identity(id(WEB), Method::Renewal)));
        let expired = Caller { certificate: Some(Err("it has expired".to_owned())), ..secured.clone() };
        assert_eq!(by(&expired, &Claim::default(), false), by_token);
        // Where the API server was asked, its word is the last one, in development, too.
        let reviewed = |of: Result<SpiffeId, String>| Caller { reviewed: Some(of), ..secured.clone() };
        let web = reviewed(Ok(id(WEB)));
        assert_eq!(by(&web, &Claim::default(), false), Ok(Attested::Identity(id(WEB), Method::Kubernetes)));
        assert!(matches!(by(&web, &claim("pay", "web"), true), Err(Denied::Forbidden(_))));
        let nobody = reviewed(Err("it has expired".to_owned()));
        assert!(matches!(by(&nobody, &claim("shop", "web"), true), Err(Denied::Unauthenticated(_))));
    }

    #[test]
    fn c15_nobody_asks_in_the_name_of_somebody_else() {
        let claim = Claim { impersonates: true, ..Claim::default() };
        for caller in [caller("127.0.0.1"), Caller { certificate: Some(Ok(id(WEB))), ..caller("127.0.0.1") }] {
            assert!(matches!(by(&caller, &claim, true), Err(Denied::Forbidden(_))));
        }
    }
}
