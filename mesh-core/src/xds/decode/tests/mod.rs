//! What is accepted, what is rejected and with which path, and that no bytes make the decoder panic.

mod after;
mod clusters;
mod connections;
mod cors;
mod edge;
mod endpoints;
mod ext_authz;
mod health_checks;
mod jwt;
mod listeners;
mod local_rate_limits;
mod overload;
mod policies;
mod quotas;
mod rate_limit_service;
mod rate_limits;
mod rbac;
mod retries;
mod routes;
mod splits;
mod tls_foreign;
mod wild;

use prost::Message;

use super::{Decoded, Options, decode};
use crate::error::Invalid;
use crate::resources::ResourceType;

fn accept(kind: ResourceType, message: &impl Message) -> Decoded {
    decode(kind, &message.encode_to_vec(), &Options::default()).unwrap_or_else(|invalid| panic!("{invalid}"))
}

fn reject(kind: ResourceType, message: &impl Message) -> Invalid {
    match decode(kind, &message.encode_to_vec(), &Options::default()) {
        Err(invalid) => invalid,
        Ok(decoded) => panic!("accepted: {decoded:?}"),
    }
}

/// A change to a message that makes it invalid, and what the error says.
type Case<M> = (&'static str, fn(&mut M));

/// Each change by itself must be rejected with an error that contains its text.
fn all_rejected<M: Message + Clone>(kind: ResourceType, valid: &M, cases: &[Case<M>]) {
    accept(kind, valid);
    for (expected, spoil) in cases {
        let mut message = valid.clone();
        spoil(&mut message);
        let text = reject(kind, &message).to_string();
        assert!(text.contains(expected), "expected {expected:?} in {text:?}");
    }
}
