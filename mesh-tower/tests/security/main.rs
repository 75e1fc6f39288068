//! Who is let in and who is talked to, over real sockets: mutual TLS, policies, tokens, authorizers.

mod authorization;
mod authorizer;
mod confusion;
mod connections_end;
mod egress;
mod ext_authz;
mod ext_authz_bodies;
mod ext_proc;
mod fails_closed;
mod global_limits;
mod identities;
mod leaving;
mod mtls;
mod overload;
mod past_the_mesh;
mod quotas;
mod rate_limits;
mod refused_tls;
mod shop;
mod tls_files;
mod tokens;

#[path = "../limits_support/mod.rs"]
mod limits_support;
#[path = "../mtls_support/mod.rs"]
mod mtls_support;
#[path = "../server_support/mod.rs"]
mod server_support;
#[path = "../tls_support/mod.rs"]
mod tls_support;
