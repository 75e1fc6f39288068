//! Envoy's rate limit quota service: clients tell what they use of quotas, and are assigned shares of the rest.
//!
//! Who tells is known as on a stream of xDS, where it says who it is: quotas that are not for it are none of its business. An Envoy
//! does not say it, and is held to the namespace of its certificate.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::rate_limit_quota::v3::RateLimitQuotaResponse;
use envoy_types::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::BucketAction;
use mesh_core::xds::quota::{MAX_MESSAGE, SERVICE, STREAM, UsageReports};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::catalog::{Catalog, Client, QuotaLimit};
use crate::config::extensions::quota::DOMAIN;
use crate::quota::{Identity, Question, Quotas, Session};
use crate::serve::clients::state::ServerState;
use crate::serve::io::guest::Guest;

/// How often it is looked for what there is to do without a word of the client.
const LOOK: Duration = Duration::from_millis(250);
/// Actions of one message.
const MOST_ACTIONS: usize = 500;
/// For how long, and how often, it is tried again to settle what a stream left behind.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone)]
pub(crate) struct QuotaDesk {
    state: Arc<ServerState>,
    quotas: Arc<Quotas>,
}

impl QuotaDesk {
    pub(crate) fn service(state: &Arc<ServerState>) -> Option<QuotaDesk> {
        let quotas = state.quotas.clone()?;
        Some(QuotaDesk { state: Arc::clone(state), quotas })
    }
}

impl NamedService for QuotaDesk {
    const NAME: &'static str = SERVICE;
}

impl tonic::codegen::Service<http::Request<Body>> for QuotaDesk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let desk = self.clone();
        Box::pin(async move {
            if request.uri().path() != STREAM {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let codec = ProstCodec::<RateLimitQuotaResponse, UsageReports>::default();
            Ok(Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).streaming(Streams(desk), request).await)
        })
    }
}

struct Streams(QuotaDesk);

type Sender = mpsc::Sender<Result<RateLimitQuotaResponse, Status>>;

impl StreamingService<UsageReports> for Streams {
    type Response = RateLimitQuotaResponse;
    type ResponseStream = ReceiverStream<Result<RateLimitQuotaResponse, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<UsageReports>>) -> Self::Future {
        let guest = match Guest::enter(&self.0.state, &request) {
            Ok(guest) => guest,
            Err(status) => return std::future::ready(Err(status)),
        };
        let (sender, receiver) = mpsc::channel(1);
        let desk = self.0.clone();
        // It ends with the stream, and with the server.
        tokio::spawn(async move {
            let mut session = desk.quotas.session(fastrand::u64(..));
            let end = desk.exchange(&guest, &mut session, request.into_inner(), &sender).await;
            let rest = match end {
                Ok(End::Left) => session.leave(desk.now()),
                Ok(End::Broke) | Err(_) => session.rest(desk.now()),
            };
            let rest = desk.unsettled(rest).await;
            if let Err(status) = end {
                // Whoever is gone is not told.
                _ = sender.send(Err(status)).await;
            }
            drop(sender);
            desk.settle_rest(&guest, rest).await;
        });
        std::future::ready(Ok(Response::new(ReceiverStream::new(receiver))))
    }
}

/// How a client ended its stream.
enum End {
    /// It has told all, and leaves.
    Left,
    /// It is gone, and may come back.
    Broke,
}

/// Who tells: a workload, or an Envoy that has a namespace at most.
enum Teller {
    Workload(Box<Client>),
    Nameless(Option<Arc<str>>),
}

/// What is in force for who tells, looked up once for each rule of a quota.
struct InForce<'t> {
    teller: &'t Teller,
    catalog: Arc<dyn Catalog>,
    found: Vec<(String, String, Option<QuotaLimit>)>,
}

impl InForce<'_> {
    fn limit(&mut self, Identity { quota, rule, .. }: &Identity) -> Option<QuotaLimit> {
        if let Some((.., found)) = self.found.iter().find(|(of, name, _)| of == quota && name == rule) {
            return *found;
        }
        let found = match self.teller {
            Teller::Workload(client) => self.catalog.quota(Some(client), quota, rule),
            Teller::Nameless(namespace) => {
                // `Quota namespace/name`
                let of = quota.split_once(' ').and_then(|(_, name)| name.split_once('/')).map(|(of, _)| of);
                let is_meant = namespace.as_ref().is_none_or(|namespace| of == Some(&**namespace));
                self.catalog.quota(None, quota, rule).filter(|_| is_meant)
            }
        };
        // Names that somebody makes up are not kept.
        if found.is_some() {
            self.found.push((quota.clone(), rule.clone(), found));
        }
        found
    }
}

impl QuotaDesk {
    fn now(&self) -> Duration {
        self.quotas.time(now())
    }

    fn in_force<'t>(&self, teller: &'t Teller) -> InForce<'t> {
        InForce { teller, catalog: self.state.feed.latest(), found: Vec::new() }
    }

    async fn exchange(
        &self,
        guest: &Guest,
        session: &mut Session,
        mut messages: Streaming<UsageReports>,
        sender: &Sender,
    ) -> Result<End, Status> {
        let Some(mut message) = guest.first(&mut messages).await? else { return Ok(End::Left) };
        if message.domain != DOMAIN {
            return Err(Status::invalid_argument(format!("quotas are of the domain {DOMAIN:?}")));
        }
        let teller = match message.node.take() {
            Some(node) => Teller::Workload(Box::new(guest.client(Some(node))?.0)),
            None => Teller::Nameless(guest.namespace()),
        };
        let mut over = std::pin::pin!(guest.over());
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut actions = self.hear(session, &teller, message).await;
        loop {
            while !actions.is_empty() {
                let rest = actions.split_off(actions.len().min(MOST_ACTIONS));
                let response = RateLimitQuotaResponse { bucket_action: actions };
                actions = rest;
                tokio::select! {
                    biased;
                    status = &mut over => return Err(status),
                    sent = sender.send(Ok(response)) => if sent.is_err() {
                        return Ok(End::Broke);
                    },
                }
            }
            actions = tokio::select! {
                biased;
                status = &mut over => return Err(status),
                () = sender.closed() => return Ok(End::Broke),
                message = messages.message() => match message? {
                    Some(message) => self.hear(session, &teller, message).await,
                    None => return Ok(End::Left),
                },
                _ = look.tick() => {
                    let mut in_force = self.in_force(&teller);
                    let (asked, mut abandoned) = session.due(|of| in_force.limit(of), self.now());
                    abandoned.extend(self.settle(session, &asked).await);
                    abandoned
                }
            };
        }
    }

    async fn hear(&self, session: &mut Session, teller: &Teller, message: UsageReports) -> Vec<BucketAction> {
        let (mut asked, mut denied) = (Vec::new(), Vec::new());
        {
            let mut in_force = self.in_force(teller);
            for usage in &message.usages {
                match session.hear(usage, |of| in_force.limit(of), self.now()) {
                    Some(question) => {
                        asked.push(question);
                        denied.push(usage.denied);
                    }
                    None => self.quotas.note_refused(),
                }
            }
        }
        let actions = self.settle(session, &asked).await;
        for (question, denied) in asked.iter().zip(denied).filter(|(_, denied)| *denied > 0) {
            self.quotas.note_denied(question, denied);
        }
        actions
    }

    /// Where it cannot be settled nothing is said, and the failure mode of the client decides.
    async fn settle(&self, session: &mut Session, asked: &[Question]) -> Vec<BucketAction> {
        let settled = self.quotas.settle(asked, self.now()).await;
        let settled = asked.iter().zip(settled).filter_map(|(question, settled)| Some((question, settled.ok()?)));
        settled.flat_map(|(question, settled)| session.settled(question, &settled, self.now())).collect()
    }

    /// Settles; what could not be settled.
    async fn unsettled(&self, asked: Vec<Question>) -> Vec<Question> {
        let settled = self.quotas.settle(&asked, self.now()).await;
        asked.into_iter().zip(settled).filter(|(_, settled)| settled.is_err()).map(|(question, _)| question).collect()
    }

    /// Tries again for a while. The guest has its place until then, so that few wait at a time.
    async fn settle_rest(&self, guest: &Guest, mut rest: Vec<Question>) {
        let mut left = PATIENCE;
        while !rest.is_empty() && !left.is_zero() {
            tokio::select! {
                biased;
                _ = guest.over() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            left = left.saturating_sub(RETRY);
            rest = self.unsettled(rest).await;
        }
    }
}

/// The time of the calendar.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
