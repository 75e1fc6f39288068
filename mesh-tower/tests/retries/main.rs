//! Retries and the limits of a try, as YAML has them and as a server sees them: the embedded control plane, the library's
//! own client, and servers that do what the path of a request says.

mod bodies;
mod chains;
mod hedging;
mod limits;
mod policies;
mod tables;
mod world;
