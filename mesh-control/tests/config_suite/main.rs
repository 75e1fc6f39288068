//! Configuration, registry, policy and rendering from the outside: YAML in, xDS out.

mod support;
mod walk;
