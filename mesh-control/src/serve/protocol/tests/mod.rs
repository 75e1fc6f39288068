//! The state machines against their rules, and against arbitrary histories.

pub(crate) mod fixture;
mod histories;
mod rules;
mod work;
