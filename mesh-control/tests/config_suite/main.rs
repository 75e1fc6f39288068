//! Configuration, registry, policy and rendering from the outside: YAML in, xDS out.

mod calling;
mod grpc;
mod routing;
mod support;
mod walk;
