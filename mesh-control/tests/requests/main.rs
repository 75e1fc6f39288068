//! What a request experiences: YAML, the embedded control plane, the library's own client, and servers over sockets.

mod access_logs;
mod balancing;
mod breakers;
mod calling;
mod coalescing;
mod connections;
mod cors;
mod explained;
mod fallbacks;
mod followed;
mod gateway_api;
mod health_checks;
mod load;
mod mirroring;
mod objects;
mod outliers;
mod retries;
mod rules;
mod sessions;
mod sidecars;
mod sticky_splits;
mod support;
mod table;
mod telemetry;
mod unreachable;
mod upstream;
