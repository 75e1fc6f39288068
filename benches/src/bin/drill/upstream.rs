//! Servers that the scenarios break: processes that are killed or stopped, and tasks that do what they are told.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_benches::Result;
use mesh_benches::grpc::EchoServer;
use mesh_benches::process::{Process, until_orphaned};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tower::{BoxError, ServiceExt};

/// Any free port of this machine.
const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What each request takes a server.
pub(crate) const WORK: Duration = Duration::from_millis(2);

/// The process that is an upstream: it says where it serves, and serves until whoever started it is gone.
pub(crate) async fn run(port: u16) -> Result {
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], port)), 1024)?;
    println!("{}", listener.local_addr()?);
    let serving = tokio::spawn(work(listener));
    tokio::task::spawn_blocking(until_orphaned).await?;
    serving.abort();
    Ok(())
}

/// An upstream in a process of its own.
pub(crate) struct Apart {
    pub(crate) at: SocketAddr,
    process: Option<Process>,
}

impl Apart {
    pub(crate) fn start() -> Result<Self> {
        let (process, said) = Process::again(&["upstream", "0"])?;
        Ok(Apart { at: said.parse().context("the upstream does not say where it serves")?, process: Some(process) })
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self) -> Result {
        self.process = Some(Process::again(&["upstream", &self.at.port().to_string()])?.0);
        Ok(())
    }

    /// Stops it, or has it go on.
    pub(crate) fn signal(&self, signal: &str) -> Result {
        let process = self.process.as_ref().context("the upstream is gone")?;
        let sent = Command::new("kill").args([signal, &process.id().to_string()]).status()?;
        anyhow::ensure!(sent.success(), "kill {signal} failed");
        Ok(())
    }
}

/// An upstream in this process, and what it does at the moment.
pub(crate) struct Task {
    pub(crate) at: SocketAddr,
    /// Ends with its connections.
    doing: Option<JoinHandle<()>>,
    /// Those who fill its backlog.
    filling: Vec<TcpStream>,
}

impl Task {
    pub(crate) fn start() -> Result<Self> {
        let listener = listen(FREE, 1024)?;
        Ok(Task { at: listener.local_addr()?, doing: Some(tokio::spawn(work(listener))), filling: Vec::new() })
    }

    /// Closes its connections, and its port.
    pub(crate) async fn refuse(&mut self) {
        self.filling.clear();
        if let Some(doing) = self.doing.take() {
            doing.abort();
            _ = doing.await;
        }
    }

    /// Takes connections, and resets each one as soon as something comes.
    pub(crate) async fn reset(&mut self) -> Result {
        self.refuse().await;
        let listener = listen(self.at, 1024)?;
        self.doing = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    _ = stream.readable().await;
                    _ = stream.set_zero_linger();
                });
            }
        }));
        Ok(())
    }

    /// Takes no connection, with as many waiting as may: the system drops what comes from then on.
    pub(crate) async fn drop_syns(&mut self) -> Result {
        self.refuse().await;
        let listener = listen(self.at, 1)?;
        loop {
            anyhow::ensure!(self.filling.len() < 1000, "the backlog does not fill: syn-dropped cannot be played here");
            match tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(self.at)).await {
                Ok(stream) => self.filling.push(stream?),
                Err(_) => break,
            }
        }
        self.doing = Some(tokio::spawn(async move {
            let _kept = listener;
            std::future::pending().await
        }));
        Ok(())
    }

    /// Serves again.
    pub(crate) async fn heal(&mut self) -> Result {
        self.refuse().await;
        self.doing = Some(tokio::spawn(work(listen(self.at, 1024)?)));
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(doing) = &self.doing {
            doing.abort();
        }
    }
}

fn listen(at: SocketAddr, backlog: u32) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    Ok(socket.listen(backlog)?)
}

/// Serves requests on a free port of this machine, for as long as the program runs.
pub(crate) fn start<A, B>(answer: impl Fn(Request<Incoming>) -> A + Clone + Send + 'static) -> Result<SocketAddr>
where
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let listener = listen(FREE, 1024)?;
    let at = listener.local_addr()?;
    tokio::spawn(serve(listener, answer));
    Ok(at)
}

/// Serves HTTP/1.1 and HTTP/2. The connections end with the future.
async fn serve<A, B>(listener: TcpListener, answer: impl Fn(Request<Incoming>) -> A + Clone + Send + 'static)
where
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                _ = stream.set_nodelay(true);
                let answer = answer.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answered = answer(request);
                        async move { Ok::<_, Infallible>(answered.await) }
                    });
                    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Says where it answers, after a little work, and is gRPC's echo.
async fn work(listener: TcpListener) {
    let name = Bytes::from(listener.local_addr().map(|at| at.to_string()).unwrap_or_default());
    serve(listener, move |request| {
        let name = name.clone();
        async move {
            tokio::time::sleep(WORK).await;
            echo(request, name).await
        }
    })
    .await;
}

/// Answers with this, or with what gRPC asked.
pub(crate) async fn echo(request: Request<Incoming>, answer: Bytes) -> Response<tonic::body::Body> {
    if mesh_core::request::is_grpc(request.headers()) {
        let Ok(echoed) = EchoServer.oneshot(request).await;
        return echoed;
    }
    Response::new(tonic::body::Body::new(Full::new(answer)))
}
