//! Configuration, registry, policy and rendering from the outside: YAML in, xDS out.

mod calling;
mod cross;
mod determinism;
mod effects;
mod experienced;
mod extensions;
mod fields;
mod foreign;
mod gateway_api;
mod grpc;
mod mesh_config;
mod mutual_tls;
mod objects;
mod reload;
mod resilience;
mod resilience_groups;
mod robust;
mod routing;
mod scale;
mod sidecar;
mod support;
mod tls_modes;
mod unmet;
mod unreadable;
mod walk;
