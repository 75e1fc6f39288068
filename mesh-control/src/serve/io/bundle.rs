//! The endpoint at which other trust domains fetch the bundle of the mesh's own (SPIFFE Federation, 5): by a certificate for its name
//! (`https_web`), or by one of the mesh's own authority (`https_spiffe`). Nobody has to say who they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ca::CertificateAuthority;
use crate::serve::clients::clock::now;
use crate::serve::clients::refusals::Port;
use crate::serve::io::https;
use crate::serve::io::own_tls::OwnTls;
use crate::serve::io::server::Server;
use crate::serve::io::tls::{Audience, Reloading, TlsFiles};

/// Serves the bundle at `/` until it is told to stop, over TLS with these files, or with a certificate of the authority where there
/// are none. Returns the address bound.
///
/// # Errors
/// The files or the roots of the authority cannot be used, or the address is taken.
pub(crate) async fn listen(
    address: SocketAddr,
    files: Option<TlsFiles>,
    authority: Arc<CertificateAuthority>,
    server: &Server,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    // Said now, and not to whoever asks.
    authority.bundle(SystemTime::now())?;
    let router = https::in_time(Router::new().route("/", get(bundle)), https::REQUEST, https::late)
        .with_state(authority.clone());
    let at = (Port::Bundle, address);
    match files {
        Some(files) => {
            let acceptor = Reloading::for_audience(Audience::Anybody, files, None, authority.trust_domain(), now())?;
            https::listen(at, acceptor.following(), router, server, stop).await
        }
        None => {
            let own = Arc::new(OwnTls::for_audience(Audience::Anybody, authority));
            let latest = move || {
                let own = own.clone();
                async move { own.latest_or_told(SystemTime::now()) }
            };
            https::listen(at, latest, router, server, stop).await
        }
    }
}

async fn bundle(State(authority): State<Arc<CertificateAuthority>>) -> Response {
    match authority.bundle(SystemTime::now()) {
        Ok(bundle) => ([(header::CONTENT_TYPE, "application/json")], bundle).into_response(),
        Err(why) => {
            tracing::error!("the bundle of the mesh's trust domain cannot be said: {why:#}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
