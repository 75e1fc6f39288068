//! What a request experiences: YAML, the embedded control plane, the library's own client, and servers over sockets.

mod calling;
mod objects;
mod rules;
mod support;
mod table;
