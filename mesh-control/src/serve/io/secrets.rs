//! Envoy's secret discovery service: whom a workload trusts, and, where the operator says so, its own certificate with a key.
//!
//! A subscriber has shown a live certificate of the mesh. It is given what is its own, under the names that Istio's agents have for
//! it, the Secrets of its namespace that a rule names (`kubernetes://NAMESPACE/NAME`), and nothing of anybody else.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::identity::SpiffeId;
use prost::Name;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::ca::{Authority, CertificateAuthority};
use crate::render::proto::{any, extension};
use crate::render::secrets::{is_secret, may_have};
use crate::serve::clients::authority::untold;
use crate::serve::clients::certificates::{Desk, Rejection};
use crate::serve::clients::clock::now;
use crate::serve::clients::fleet::{Place, Who};
use crate::serve::clients::refusals::Reason;
use crate::serve::clients::state::ServerState;
use crate::serve::io::guest::{certificate_ends, still_holds};
use crate::serve::io::server::Peer;

/// Its own certificate, by Istio's name.
const OWN: &str = "default";
/// Whom it trusts, by Istio's name.
const TRUST: &str = "ROOTCA";
/// How often it is looked whether that is what was sent.
const LOOK: Duration = Duration::from_secs(5);
/// The largest request.
const MAX_REQUEST: usize = 64 << 10;

/// See the [module](self).
pub(crate) struct Secrets {
    state: Arc<ServerState>,
    trust: Arc<Trust>,
}

impl Secrets {
    pub(crate) fn service(state: &Arc<ServerState>) -> SecretDiscoveryServiceServer<Secrets> {
        SecretDiscoveryServiceServer::new(Secrets { state: state.clone(), trust: Arc::default() })
            .max_decoding_message_size(MAX_REQUEST)
    }
}

#[async_trait]
impl SecretDiscoveryService for Secrets {
    type DeltaSecretsStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("a connection without an address"))?;
        let subscriber = Subscriber::of(self, peer)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            if let Err(status) = subscriber.serve(request.into_inner(), &sender).await {
                // Who hangs up was not turned away.
                if std::error::Error::source(&status).is_none() {
                    subscriber.note(status.message());
                }
                // It may be gone: then there is nobody to tell.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("secrets are served by StreamSecrets: api_type GRPC"))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served by StreamSecrets: api_type GRPC"))
    }
}

/// Somebody who has proven who they are.
struct Subscriber {
    state: Arc<ServerState>,
    desk: Arc<Desk>,
    peer: Peer,
    identity: SpiffeId,
    trust: Arc<Trust>,
    _place: Place,
}

impl Subscriber {
    fn of(Secrets { state, trust }: &Secrets, peer: Peer) -> Result<Subscriber, Status> {
        let refused = |why: String| {
            state.refusals.note(peer.ip, Reason::Identity, "", &why, now());
            Err(Status::permission_denied(why))
        };
        let Some(desk) = state.desk.clone() else {
            return refused("there are no secrets: this server issues no certificates".to_owned());
        };
        match &peer.identity {
            Some(Ok(identity)) if peer.chain.is_some() => {
                still_holds(state, &peer)?;
                let identity = identity.clone();
                let place = state.fleet.place(Who::of(Some(&identity), peer.ip)).map_err(|why| {
                    state.refusals.note(peer.ip, Reason::Limit, "", &why, now());
                    Status::resource_exhausted(why)
                })?;
                Ok(Subscriber { state: state.clone(), desk, peer, identity, trust: trust.clone(), _place: place })
            }
            Some(Err(why)) => {
                refused(format!("secrets are for who shows a certificate, and this one names nobody: {why}"))
            }
            _ => refused("secrets are for who shows a certificate of the mesh over TLS".to_owned()),
        }
    }

    fn note(&self, why: &str) {
        self.state.refusals.note(self.peer.ip, Reason::Identity, self.identity.as_str(), why, now());
    }

    /// Until the subscriber goes, its certificate ends, or it asks for what is not its own.
    async fn serve(
        &self,
        mut requests: Streaming<DiscoveryRequest>,
        sender: &mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let (mut trust, mut stop) = (self.state.revoked.subscribe(), self.state.stop.clone());
        // It comes back with the next one.
        let mut ended = std::pin::pin!(certificate_ends(self.peer.expires));
        let mut look = tokio::time::interval(LOOK);
        let (mut names, mut own, mut sent, mut number) = (Vec::<String>::new(), None, Vec::<Arc<Any>>::new(), 0_u64);
        let (mut envoy, mut pulse) = (None, self.state.feed.pulse());
        loop {
            tokio::select! {
                request = requests.message() => match request? {
                    None => return Ok(()),
                    Some(request) => {
                        if !request.type_url.is_empty() && request.type_url != pb::Secret::type_url() {
                            return Err(Status::invalid_argument(format!("{:?} is no type of secrets", request.type_url)));
                        }
                        if let Some(error) = request.error_detail {
                            let why: String = error.message.chars().take(300).collect();
                            tracing::warn!(identity = self.identity.as_str(), why, "client refused a secret");
                        }
                        names = request.resource_names;
                        names.sort();
                        names.dedup();
                        if envoy.is_none() && names.iter().any(|name| name == TRUST) {
                            envoy = Some(Envoy::of(&self.desk));
                        }
                    }
                },
                changed = trust.changed() => match changed {
                    Ok(()) => still_holds(&self.state, &self.peer)?,
                    Err(_) => return Ok(()),
                },
                _ = look.tick() => {}
                // An error would say that there will be none any more.
                Ok(()) = pulse.changed(), if names.iter().any(|name| is_secret(name)) => {}
                () = &mut ended => return Ok(()),
                () = sender.closed() => return Ok(()),
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
            let mut resources = Vec::new();
            for name in &names {
                resources.extend(self.secret(name, &mut own).await?);
            }
            // Most of it is shared with all others, and long.
            let is_same = |(one, other): (&Arc<Any>, &Arc<Any>)| Arc::ptr_eq(one, other) || one == other;
            // Nothing says that a Secret is gone: it is an error to Envoy, which goes on with what it has.
            if resources.is_empty() || resources.len() == sent.len() && resources.iter().zip(&sent).all(is_same) {
                continue;
            }
            number += 1;
            let response = DiscoveryResponse {
                version_info: number.to_string(),
                nonce: number.to_string(),
                type_url: pb::Secret::type_url(),
                resources: resources.iter().map(|secret| (**secret).clone()).collect(),
                ..DiscoveryResponse::default()
            };
            sent = resources;
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// `None` where there is no Secret of this name.
    async fn secret(&self, name: &str, own: &mut Option<Own>) -> Result<Option<Arc<Any>>, Status> {
        let refused = |why: &str| {
            Err(Status::permission_denied(format!("{} asks for the secret {name:?}: {why}", self.identity)))
        };
        match name {
            TRUST => Ok(Some(self.trust.latest(self.desk.authority()))),
            OWN if !self.desk.hands_out_keys() => refused(
                "private keys leave this server only with --sds-private-keys; a workload makes its own and has it signed",
            ),
            OWN => {
                let certificate = match own.take().filter(|own| Instant::now() < own.renewed_at) {
                    Some(own) => own,
                    None => self.certificate().await?,
                };
                let secret = certificate.secret.clone();
                *own = Some(certificate);
                Ok(Some(secret))
            }
            name if is_secret(name) && may_have(&self.identity, name) => {
                let secret = self.state.feed.latest().secret(&self.identity, name);
                Ok(secret.map(|secret| Arc::new(Any { type_url: pb::Secret::type_url(), value: secret.to_vec() })))
            }
            name if is_secret(name) => refused("a Secret is for workloads of its own namespace"),
            _ => refused("there are `ROOTCA`, and `default` of its own, and nobody else's"),
        }
    }

    /// A new key with a certificate, as often as anybody gets one.
    async fn certificate(&self) -> Result<Own, Status> {
        let failed = |rejection: Rejection| match rejection {
            Rejection::Throttled => Status::resource_exhausted(rejection.to_string()),
            _ => Status::unavailable(rejection.to_string()),
        };
        let wait = self.desk.turn_of(&self.identity, self.peer.ip, &self.peer.asked, now()).map_err(failed)?;
        tokio::time::sleep(wait).await;
        let made = self.desk.hand_out(&self.identity, self.peer.ip, SystemTime::now());
        let (key, issued) = made.map_err(failed)?;
        let (_, chain) = issued.chain.split_last().ok_or_else(|| Status::internal("the chain is empty"))?;
        let secret = pb::TlsCertificate {
            certificate_chain: Some(inline(chain.concat())),
            private_key: Some(inline(key.to_string())),
            ..pb::TlsCertificate::default()
        };
        // As soon as a workload would that asks by itself.
        let life = issued.ttl.mul_f64(0.45 + 0.1 * fastrand::f64());
        let secret = named(OWN, pb::secret::Type::TlsCertificate(secret));
        Ok(Own { secret, renewed_at: Instant::now() + life })
    }
}

/// What was made for a subscriber.
struct Own {
    secret: Arc<Any>,
    renewed_at: Instant,
}

/// A stream on which an Envoy is told whom to trust, until it is dropped.
struct Envoy(Arc<Desk>);

impl Envoy {
    fn of(desk: &Arc<Desk>) -> Envoy {
        desk.note_envoy(true);
        Envoy(desk.clone())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.0.note_envoy(false);
    }
}

/// Whom all of them trust, made once.
#[derive(Default)]
struct Trust(Mutex<Option<(Trusted, Arc<Any>)>>);

type Trusted = (Arc<Authority>, Arc<BTreeMap<String, String>>);

impl Trust {
    fn latest(&self, authority: &CertificateAuthority) -> Arc<Any> {
        let trusted = authority.trusted();
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |(own, foreign): &Trusted| Arc::ptr_eq(own, &trusted.0) && Arc::ptr_eq(foreign, &trusted.1);
        if let Some((_, made)) = made.as_ref().filter(|(of, _)| is_same(of)) {
            return made.clone();
        }
        let context = named(TRUST, pb::secret::Type::ValidationContext(trust(&trusted)));
        *made = Some((trusted, context.clone()));
        context
    }
}

fn named(name: &str, secret: pb::secret::Type) -> Arc<Any> {
    Arc::new(any(&pb::Secret { name: name.to_owned(), r#type: Some(secret) }))
}

/// Whom a workload trusts: the roots of each trust domain for its own identities alone, which Envoy's SPIFFE validator looks at. It
/// knows no lists of revoked certificates, which Envoy applies to one pool of roots: then these are the mesh's own. Whose roots
/// cannot be told is not trusted.
fn trust((own, foreign): &Trusted) -> pb::CertificateValidationContext {
    let (roots, revoked) = (own.roots_pem(), own.revoked_pem());
    if !revoked.is_empty() {
        return pb::CertificateValidationContext {
            trusted_ca: Some(inline(roots)),
            crl: Some(inline(revoked)),
            ..pb::CertificateValidationContext::default()
        };
    }
    let untold: BTreeSet<&str> = untold(&revoked, foreign).collect();
    let foreign = foreign.iter().filter(|(domain, _)| !untold.contains(domain.as_str()));
    let all = std::iter::once((own.domain().to_string(), roots))
        .chain(foreign.map(|(domain, roots)| (domain.clone(), roots.clone())));
    let trust_domains = all.map(|(name, roots)| pb::spiffe_cert_validator_config::TrustDomain {
        name,
        trust_bundle: Some(inline(roots)),
        ..Default::default()
    });
    let config = pb::SpiffeCertValidatorConfig { trust_domains: trust_domains.collect(), trust_bundles: None };
    pb::CertificateValidationContext {
        custom_validator_config: Some(extension("envoy.tls.cert_validator.spiffe", &config)),
        ..pb::CertificateValidationContext::default()
    }
}

fn inline(text: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() }
}
