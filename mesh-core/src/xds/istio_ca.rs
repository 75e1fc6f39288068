//! Istio's protocol of certificates (`istio.v1.auth.IstioCertificateService`, security/v1alpha1/ca.proto): a request to
//! sign a key, and the chain that comes back. Our own authority speaks it, and so does Istio's.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Struct;

/// The service's name.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";

/// The path of its only method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The largest answer, in bytes. Lists of revoked certificates may be long: gRPC's own default of 4 MiB is less than some hundred
/// thousand of them need. An authority hands out no more, and who asks it reads as much.
pub const MAX_RESPONSE: usize = 16 << 20;

/// A request to sign a key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// The PKCS#10 request in PEM. Only its key counts: names come from who asks.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate shall hold, in seconds; zero = the authority's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// What else there is to say: see [`NAMESPACE`] and [`SERVICE_ACCOUNT`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// The signed chain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// Certificates in PEM: the leaf first, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
    /// Not Istio's: the roots of foreign trust domains, in PEM by their names. They are no part of the chain, where others would
    /// take them for roots of the mesh.
    #[prost(btree_map = "string, string", tag = "1000")]
    pub trust_bundles: BTreeMap<String, String>,
}

/// The key of the metadata in which a workload names its namespace, where nothing better says who it is (`--dev`).
pub const NAMESPACE: &str = "NAMESPACE";

/// The key of the metadata in which a workload names its service account, where nothing better says who it is (`--dev`).
pub const SERVICE_ACCOUNT: &str = "SERVICE_ACCOUNT";

/// In the head of the responses on a stream of xDS: a short name of the roots that the server's authority hands out
/// ([`trust_fingerprint`](crate::tls::trust_fingerprint)). A workload that knows others asks for a new certificate.
pub const ROOTS: &str = "x-mesh-roots";
