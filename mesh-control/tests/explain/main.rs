//! `mesh-control explain` and `mesh-control route test`, as people run them.

mod answers;
mod bars;
mod differences;
mod explained;
mod page;
mod support;
