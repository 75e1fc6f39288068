//! The SPIFFE Workload API (SPIFFE_Workload_API.md, section 5): an agent of this machine tells a workload who it is, and
//! tells it again whenever something changes.
//!
//! Each answer is the whole truth: what an answer does not have any more is not trusted any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use tonic::client::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::error::Invalid;
use crate::identity::{SpiffeId, TrustDomain};
use crate::tls::{Certificates, Credentials, Revoked, TrustBundles};
use crate::xds::bootstrap::Server;
use crate::xds::connect::Connector;
use crate::xds::istio_ca::MAX_RESPONSE;
use crate::xds::transport::{self, Keepalive};

const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// Without this header an agent must not answer: a workload that is made to fetch some URL cannot send it (Workload
/// Endpoint, section 6).
const SECURITY_HEADER: &str = "workload.spiffe.io";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct X509SvidRequest {}

/// What the workload is now.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct X509SvidResponse {
    /// Its identities; the first one is the default.
    #[prost(message, repeated, tag = "1")]
    pub(crate) svids: Vec<X509Svid>,
    /// Revocations (DER), each of an authority that it names.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) crl: Vec<Vec<u8>>,
    /// Roots (DER, one after the other) of foreign trust domains, by the domain's ID.
    #[prost(map = "string, bytes", tag = "3")]
    pub(crate) federated_bundles: HashMap<String, Vec<u8>>,
}

/// One identity. It holds a key, so it is never shown.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    /// The chain (DER, one after the other), the leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) x509_svid: Vec<u8>,
    /// The key (PKCS#8, DER).
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) x509_svid_key: Vec<u8>,
    /// The roots of its own trust domain (DER, one after the other).
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) bundle: Vec<u8>,
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// Why an agent tells nothing any more.
pub(crate) enum Ended {
    /// Asking again would not help (section 5.2.1: `InvalidArgument`).
    ForGood(String),
    /// It may work again later.
    ForNow(String),
}

/// Takes in what an agent tells, until it tells no more. `succeeded` is told of every good answer.
pub(crate) async fn follow(
    certificates: &Certificates,
    agent: &Server,
    connector: &Connector,
    keepalive: &Keepalive,
    mut succeeded: impl FnMut(),
) -> Ended {
    let channel = match transport::connect(connector, agent, keepalive, None).await {
        Ok(channel) => channel,
        Err(failed) => return Ended::ForNow(failed.reason),
    };
    let mut request = tonic::Request::new(X509SvidRequest {});
    request.metadata_mut().insert(SECURITY_HEADER, tonic::metadata::MetadataValue::from_static("true"));
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
    if let Err(error) = client.ready().await {
        return Ended::ForNow(error.to_string());
    }
    let codec = ProstCodec::<X509SvidRequest, X509SvidResponse>::default();
    let path = http::uri::PathAndQuery::from_static(FETCH_X509_SVID);
    let mut answers = match client.server_streaming(request, path, codec).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return ended(&status),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => match credentials(answer, SystemTime::now()) {
                Ok(credentials) => {
                    succeeded();
                    certificates.set(Arc::new(credentials));
                }
                // What was good before stays; the agent tells more when it has more.
                Err(invalid) => certificates.failed(invalid.to_string()),
            },
            Ok(None) => return Ended::ForNow("the agent has ended the stream".to_owned()),
            Err(status) => return ended(&status),
        }
    }
}

fn ended(status: &Status) -> Ended {
    let reason = format!("{:?}: {}", status.code(), status.message());
    if status.code() == Code::InvalidArgument { Ended::ForGood(reason) } else { Ended::ForNow(reason) }
}

/// The default identity of an answer, and whom it says to trust.
fn credentials(answer: X509SvidResponse, now: SystemTime) -> Result<Credentials, Invalid> {
    let svid = answer.svids.into_iter().next().ok_or_else(|| Invalid::new("there is none").at("svids"))?;
    let at = |invalid: Invalid, field: &str| invalid.at(format!("svids[0].{field}"));
    let id: SpiffeId = svid.spiffe_id.parse().map_err(|invalid| at(invalid, "spiffe_id"))?;
    let chain = parse(&svid.x509_svid).map_err(|invalid| at(invalid, "x509_svid"))?;
    let mut bundles = TrustBundles::new();
    let own: TrustDomain = id.trust_domain().parse()?;
    let roots = parse(&svid.bundle).map_err(|invalid| at(invalid, "bundle"))?;
    bundles.add(own.clone(), &roots).map_err(|invalid| at(invalid, "bundle"))?;
    let mut authorities = vec![(own.clone(), roots)];
    authorities.extend(chain.iter().skip(1).map(|authority| (own.clone(), vec![authority.clone()])));
    for (name, roots) in &answer.federated_bundles {
        let at = |invalid: Invalid| invalid.at(format!("federated_bundles[{name:?}]"));
        let domain: TrustDomain = name.strip_prefix("spiffe://").unwrap_or(name).parse().map_err(at)?;
        if domain == own {
            return Err(at(Invalid::new("the workload's own trust domain is not a foreign one")));
        }
        let roots = parse(roots).map_err(at)?;
        bundles.add(domain.clone(), &roots).map_err(at)?;
        authorities.push((domain, roots));
    }
    for (domain, revoked) in revoked(answer.crl, &authorities).map_err(|invalid| invalid.at("crl"))? {
        bundles.revoke(domain, revoked);
    }
    // One that has ended tells of nobody who was revoked since.
    bundles.check(now).map_err(|invalid| invalid.at("crl"))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key));
    let credentials = Credentials::new(chain, key, bundles, String::new())?;
    if *credentials.id() != id {
        return Err(Invalid::new(format!("the certificate is that of {}", credentials.id())).at("svids[0].spiffe_id"));
    }
    Ok(credentials)
}

/// Whom these authorities vouch for no longer, by the trust domain of the authority that says so in each list.
fn revoked(
    lists: Vec<Vec<u8>>,
    authorities: &[(TrustDomain, Vec<CertificateDer<'static>>)],
) -> Result<BTreeMap<TrustDomain, Revoked>, Invalid> {
    let is_called = |authority: &CertificateDer<'_>, name: &[u8]| {
        X509Certificate::from_der(authority).is_ok_and(|(_, authority)| authority.subject().as_raw() == name)
    };
    let mut by_domain: BTreeMap<TrustDomain, Vec<CertificateRevocationListDer<'static>>> = BTreeMap::new();
    for list in lists {
        let (_, parsed) = CertificateRevocationList::from_der(&list)
            .map_err(|_| Invalid::new("a list of revoked certificates cannot be parsed"))?;
        let issuer = parsed.issuer().as_raw();
        let mut domains: Vec<_> = authorities
            .iter()
            .filter(|(_, certificates)| certificates.iter().any(|certificate| is_called(certificate, issuer)))
            .map(|(domain, _)| domain)
            .collect();
        domains.dedup();
        let [domain] = domains[..] else {
            let name = parsed.issuer().to_string();
            return Err(Invalid::new(format!(
                "{name:?} is the name of authorities of {} trust domains, so that nobody can tell whom that list is about",
                domains.len()
            )));
        };
        by_domain.entry(domain.clone()).or_default().push(list.into());
    }
    by_domain.into_iter().map(|(domain, lists)| Ok((domain, Revoked::from_der(lists)?))).collect()
}

/// Certificates in DER that follow each other without anything between.
fn parse(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|_| Invalid::new("not a certificate in DER"))?;
        let length = der.len() - rest.len();
        found.push(CertificateDer::from(der.get(..length).unwrap_or_default().to_vec()));
        der = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
