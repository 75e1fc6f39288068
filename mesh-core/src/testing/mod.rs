//! Builders, seeded randomness and a scriptable management server, for tests (feature `testing`).

pub mod resources;
