//! The bundle of the mesh's own trust domain in SPIFFE's form, as its endpoint serves it (SPIFFE Trust Domain and Bundle, 4).

use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::json;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::authority::since_epoch;
use super::bundle_map::jwk;
use super::{endpoint, lock};

/// What was served last, and since when.
#[derive(Default)]
pub(super) struct OwnBundle(Mutex<(Vec<CertificateDer<'static>>, u64)>);

impl OwnBundle {
    /// The bundle of these roots. Its number is when they were served first by this process, so that it is larger after each change,
    /// and after a restart.
    pub(super) fn latest(&self, roots: &[CertificateDer<'static>], now: SystemTime) -> anyhow::Result<String> {
        let sequence = {
            let mut served = lock(&self.0);
            if served.0 != roots {
                *served = (roots.to_vec(), since_epoch(now).max(served.1 + 1));
            }
            served.1
        };
        let keys = roots.iter().map(jwk).collect::<anyhow::Result<Vec<_>>>()?;
        let hint = endpoint::REFRESH.as_secs();
        Ok(json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": hint }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::tls::SpiffeBundle;
    use tokio_rustls::rustls::pki_types::pem::PemObject;

    use super::super::tests::{NOW, at, ca_params, self_signed};
    use super::*;

    #[test]
    fn a_bundle_has_all_roots_and_a_number_that_grows_when_they_change() {
        let [one, other] = ["one", "other"]
            .map(|name| self_signed(ca_params(name)).pem)
            .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate"));
        let bundle = OwnBundle::default();
        let read = |roots: &[CertificateDer<'static>], now: u64| {
            let text = bundle.latest(roots, at(now)).expect("a bundle");
            let read = SpiffeBundle::from_json(text.as_bytes()).expect("it is read");
            assert_eq!(read.roots, roots);
            assert_eq!(read.refresh_hint, Some(Duration::from_secs(300)));
            read.sequence
        };
        assert_eq!(read(std::slice::from_ref(&one), NOW), Some(NOW));
        assert_eq!(read(std::slice::from_ref(&one), NOW + 5), Some(NOW));
        assert_eq!(read(&[one.clone(), other.clone()], NOW + 9), Some(NOW + 9));
        assert_eq!(read(&[other], NOW - 100), Some(NOW + 10), "the clock was set back");
    }
}
