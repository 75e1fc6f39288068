//! What the tests of `serve/` share: a catalog made by hand, and a client that plays one stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc;

use crate::catalog::{Catalog, Client, ClientClass, Encoded, Kind, Topology};
use crate::serve::protocol::push::Pace;
use crate::serve::protocol::session::{Heard, Opening, Response, Session, Variant};
use crate::serve::protocol::{delta, sotw};

pub(crate) const PACE: Pace =
    Pace { grace: Duration::from_secs(5), linger: Duration::from_millis(500), nack_pause: Duration::from_secs(1) };

/// A catalog made by hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) items: BTreeMap<(Kind, String), Encoded>,
    /// Clusters that something takes the place of where they are refused.
    pub(crate) instead: BTreeMap<String, Encoded>,
}

impl Shelf {
    /// Puts a resource whose body is its version.
    pub(crate) fn with(mut self, kind: Kind, name: &str, version: &str) -> Shelf {
        self.put(kind, name, version);
        self
    }

    pub(crate) fn put(&mut self, kind: Kind, name: &str, version: &str) -> &mut Encoded {
        let resource = Encoded {
            name: name.into(),
            version: version.into(),
            body: Bytes::copy_from_slice(version.as_bytes()),
            self_registered: false,
            endpoints: 0,
        };
        self.items.insert((kind, name.to_owned()), resource);
        self.items.get_mut(&(kind, name.to_owned())).expect("was just put there")
    }

    /// A cluster that is another one where it is refused.
    pub(crate) fn or_instead(mut self, name: &str, version: &str) -> Shelf {
        let other = Shelf::default().with(Kind::Cluster, name, version).items.into_values().next();
        self.instead.extend(other.map(|other| (name.to_owned(), other)));
        self
    }

    pub(crate) fn without(mut self, kind: Kind, name: &str) -> Shelf {
        self.items.remove(&(kind, name.to_owned()));
        self
    }

    /// Endpoints of workloads that register themselves; the version ends with how many there are.
    pub(crate) fn with_workloads(mut self, name: &str, version: &str) -> Shelf {
        let resource = self.put(Kind::Endpoints, name, version);
        resource.self_registered = true;
        resource.endpoints = Encoded::endpoints_of(version).unwrap_or_default();
        self
    }

    pub(crate) fn arc(&self) -> Arc<dyn Catalog> {
        Arc::new(self.clone())
    }
}

impl Catalog for Shelf {
    fn instead(&self, _client: &Client, _kind: Kind, name: &str) -> Option<Encoded> {
        self.instead.get(name).cloned()
    }

    fn resource(&self, _client: &Client, kind: Kind, name: &str) -> Option<Encoded> {
        self.items.get(&(kind, name.to_owned())).cloned()
    }

    fn everything(&self, _client: &Client, kind: Kind) -> Vec<Arc<str>> {
        let all = self.items.iter().filter(|((of, _), _)| *of == kind);
        all.map(|(_, resource)| resource.name.clone()).collect()
    }
}

pub(crate) fn client(class: ClientClass) -> Client {
    Client {
        node_id: "mesh~10.0.0.1~web.shop~shop.svc.cluster.local".into(),
        class,
        namespace: "shop".into(),
        labels: Arc::default(),
        instance_ips: Vec::new(),
        peer_ip: [127, 0, 0, 1].into(),
        ports: Vec::new(),
        locality: ["".into(), "".into(), "".into()],
        empty_means_all: class == ClientClass::Envoy,
        group: None,
        identity: None,
        sidecar: None,
        is_gateway: false,
        topology: Topology::default(),
    }
}

/// A stream whose client does as it is told, in a time of its own.
pub(crate) struct Talk {
    pub(crate) session: Session,
    pub(crate) now: Instant,
}

impl Talk {
    pub(crate) fn sotw(shelf: &Shelf) -> Talk {
        Talk::open(Variant::Sotw, ClientClass::Grpc, shelf, Duration::ZERO)
    }

    pub(crate) fn delta(shelf: &Shelf) -> Talk {
        Talk::open(Variant::Delta, ClientClass::Library, shelf, Duration::ZERO)
    }

    pub(crate) fn open(variant: Variant, class: ClientClass, shelf: &Shelf, settle: Duration) -> Talk {
        let now = Instant::now();
        let opening = Opening {
            client: client(class),
            catalog: shelf.arc(),
            pace: PACE,
            settles_at: now + settle,
            tag: 0xbeef,
            interner: Arc::default(),
        };
        Talk { session: Session::new(variant, opening, now), now }
    }

    /// A state-of-the-world request with the nonce of a response, or without.
    pub(crate) fn ask(&mut self, kind: Kind, names: &[&str], after: Option<&Response>) -> Vec<Response> {
        let request = DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names: strings(names),
            version_info: after.map(|response| response.version.clone()).unwrap_or_default(),
            response_nonce: after.map(|response| response.nonce.clone()).unwrap_or_default(),
            ..DiscoveryRequest::default()
        };
        self.send_sotw(&request);
        self.drain()
    }

    pub(crate) fn send_sotw(&mut self, request: &DiscoveryRequest) -> Heard {
        sotw::on_request(&mut self.session, request, self.now)
    }

    pub(crate) fn send_delta(&mut self, request: &DeltaDiscoveryRequest) -> Heard {
        delta::on_request(&mut self.session, request, self.now)
    }

    pub(crate) fn subscribe(&mut self, kind: Kind, names: &[&str]) -> Vec<Response> {
        self.send_delta(&delta_request(kind, names, &[]));
        self.drain()
    }

    pub(crate) fn unsubscribe(&mut self, kind: Kind, names: &[&str]) -> Vec<Response> {
        self.send_delta(&delta_request(kind, &[], names));
        self.drain()
    }

    /// Accepts a response; what is sent thereupon. A state-of-the-world client repeats its names.
    pub(crate) fn ack(&mut self, response: &Response) -> Vec<Response> {
        self.answer(response, None);
        self.drain()
    }

    /// Refuses a response; what is sent thereupon.
    pub(crate) fn nack(&mut self, response: &Response, text: &str) -> Vec<Response> {
        self.answer(response, Some(text));
        self.drain()
    }

    pub(crate) fn answer(&mut self, response: &Response, error: Option<&str>) -> Heard {
        let error_detail = error.map(|text| rpc::Status { code: 3, message: text.to_owned(), details: Vec::new() });
        match self.session.variant() {
            Variant::Sotw => {
                let names = self.session.ledger(response.kind).0.explicit().map(|name| name.to_string()).collect();
                self.send_sotw(&DiscoveryRequest {
                    type_url: response.kind.type_url().to_owned(),
                    resource_names: names,
                    version_info: response.version.clone(),
                    response_nonce: response.nonce.clone(),
                    error_detail,
                    ..DiscoveryRequest::default()
                })
            }
            Variant::Delta => self.send_delta(&DeltaDiscoveryRequest {
                type_url: response.kind.type_url().to_owned(),
                response_nonce: response.nonce.clone(),
                error_detail,
                ..DeltaDiscoveryRequest::default()
            }),
        }
    }

    pub(crate) fn publish(&mut self, shelf: &Shelf) -> Vec<Response> {
        self.session.on_catalog(shelf.arc(), self.now);
        self.drain()
    }

    pub(crate) fn wait(&mut self, time: Duration) -> Vec<Response> {
        self.now += time;
        self.drain()
    }

    pub(crate) fn drain(&mut self) -> Vec<Response> {
        let responses: Vec<_> = std::iter::from_fn(|| self.session.next(self.now)).take(1000).collect();
        assert!(responses.len() < 1000, "the session has no end of responses");
        assert!(self.session.wakes_at(self.now).is_none_or(|at| at > self.now), "the session wakes at once");
        responses
    }

    /// Accepts everything until the session has nothing more to say, waiting wherever it waits.
    pub(crate) fn finish(&mut self, mut responses: Vec<Response>) -> Vec<Response> {
        let mut all = Vec::new();
        loop {
            while let Some(response) = (!responses.is_empty()).then(|| responses.remove(0)) {
                responses.extend(self.ack(&response));
                all.push(response);
            }
            let Some(at) = self.session.wakes_at(self.now) else {
                return all;
            };
            self.now = at;
            responses = self.drain();
        }
    }
}

pub(crate) fn delta_request(kind: Kind, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: strings(subscribe),
        resource_names_unsubscribe: strings(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(crate) fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// `name=version` of every resource and `!name` of every absence, for short assertions.
pub(crate) fn said(response: &Response) -> Vec<String> {
    let given = response.resources.iter().map(|resource| format!("{}={}", resource.name, resource.version));
    given.chain(response.absent.iter().map(|name| format!("!{name}"))).collect()
}

/// The same for several responses, with their kinds.
pub(crate) fn told(responses: &[Response]) -> Vec<String> {
    responses.iter().map(|response| format!("{:?} {}", response.kind, said(response).join(" "))).collect()
}
