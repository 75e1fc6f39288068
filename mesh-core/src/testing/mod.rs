//! Builders of resources and a scriptable management server, for tests (feature `testing`).

mod answers;
pub mod resources;
mod server;
mod tokens;

pub use answers::{Answer, Flaw};
pub use server::{Asked, ManagementServer, Mode};
pub use tokens::TokenIssuer;
