//! Certificates of Secrets that end while the configuration stays as it is.

use std::sync::Arc;
use std::time::SystemTime;

use super::snapshot::Compiled;
use crate::config::{Code, Diagnostic, Severity};

impl Compiled {
    /// What there is to say of them now, but for what was said when they were read.
    pub(super) fn ended(&self, now: SystemTime) -> Vec<Diagnostic> {
        let ended = self.policy.secrets.iter().filter_map(|object| {
            let ((topic, message), origin) = (object.spec.ended(now)?, &object.meta.origin);
            let file = Arc::clone(&origin.source.name);
            let mut finding = Diagnostic::of_file(file, Severity::Warning, Code::InvalidValue, message);
            (finding.line, finding.column) = (origin.span.line, origin.span.column);
            Some(finding.object(object.meta.id()).field("data").about(topic))
        });
        let is_told = |finding: &Diagnostic| {
            let mut told = self.diagnostics.iter().filter(|told| told.object == finding.object);
            told.any(|told| told.topic() == finding.topic())
        };
        ended.filter(|finding| !is_told(finding)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use crate::plane::Plane;

    fn secret(until: i32) -> String {
        let mut params = rcgen::CertificateParams::new(["api.example.com".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(1990, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let chain = params.self_signed(&key).expect("a certificate").pem();
        let of = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        let (chain, key) = (of(chain), of(key.serialize_pem()));
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: api, namespace: shop}}\ntype: kubernetes.io/tls\n\
             stringData:\n  tls.crt: |\n{chain}  tls.key: |\n{key}"
        )
    }

    #[test]
    fn a_certificate_that_ends_is_told_of_although_nobody_writes_anything() {
        const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
        let (now, late) = (UNIX_EPOCH + 100 * YEAR, UNIX_EPOCH + 600 * YEAR);
        for (until, expected) in [(2500, [0, 1]), (1991, [1, 1])] {
            let plane = Plane::empty();
            plane.set_yaml("s.yaml", &secret(until)).expect("it is right");
            let told = [now, late].map(|now| {
                let found = plane.diagnostics_at(now);
                let of_it: Vec<String> = found.iter().map(ToString::to_string).collect();
                let says =
                    |line: &&String| line.contains("Secret shop/api") && line.contains("the certificate has ended");
                of_it.iter().filter(says).count()
            });
            assert_eq!(told, expected, "{until}");
        }
    }
}
