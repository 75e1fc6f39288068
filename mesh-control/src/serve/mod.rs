//! The ADS server: what was decided elsewhere, on the wire.

mod delta;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod histories;
mod ledger;
mod push;
#[cfg(test)]
mod rules;
mod session;
mod sotw;
