//! `mesh-control explain` and `mesh-control route test`, as people run them.

mod answers;
mod differences;
mod page;
mod support;
