//! The HTTP endpoint: `/metrics` and `/healthz` on a thread of its own.
//!
//! hyper on a current-thread tokio runtime: it has the limits that an open port needs (time for the header, size of
//! it, connections at once) and is small; axum would add a router for two paths. A client can waste its own
//! connection and nothing else: the step shares one short lock with a scrape and never waits for a socket.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, Once};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::negotiation::dialect;
use super::state::State;
use super::{MAX_SERIES, lock};
use crate::telemetry::message;

/// More clients than a pair of Prometheus servers and a few curious people is no use.
const MAX_CONNECTIONS: usize = 16;

/// Time for a client to send its request's header.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// Time for a whole exchange; the scrape timeout of Prometheus is 10 s by default.
const EXCHANGE_TIME: Duration = Duration::from_secs(10);

/// Room for a request's header.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Time before another try when the system refuses connections, such as for lack of file descriptors.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Whether the user knows that there are too many series.
static TOLD: Once = Once::new();

/// A running endpoint; dropping it closes every connection.
#[derive(Debug)]
pub(super) struct Server {
    /// Where it listens.
    pub(super) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` and serves `state` from then on.
    pub(super) fn start(address: SocketAddr, state: Arc<Mutex<State>>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _within = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("prometheus".into()).spawn(move || {
            runtime.block_on(async {
                tokio::spawn(accept(listener, state));
                // Ends when the sender is used or dropped; both mean the same.
                let _ = stopped.await;
            });
        })?;
        Ok(Server { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic on that thread has already told so on stderr; the run is not its business.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<Mutex<State>>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut is_refused = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                is_refused = false;
                // One too many is hung up on.
                if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                    let state = Arc::clone(&state);
                    tokio::spawn(async move {
                        exchange(stream, &state).await;
                        drop(slot);
                    });
                }
            }
            Err(error) => {
                if !is_refused {
                    message(format_args!("metrics: a connection was refused: {error}; trying on"));
                }
                is_refused = true;
                sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

/// One request and its answer. A client that breaks off or breaks the protocol concerns only itself.
async fn exchange(stream: tokio::net::TcpStream, state: &Mutex<State>) {
    let service = service_fn(|request| {
        let response = answer(&request, state);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEADER_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(EXCHANGE_TIME, connection).await;
}

fn answer(request: &Request<Incoming>, state: &Mutex<State>) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = respond(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n".to_owned());
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => {
            let headers = request.headers().get_all(ACCEPT);
            let accept: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
            let dialect = dialect(&accept.join(","));
            let mut exposition = lock(state).gather();
            let left_out = exposition.limit(MAX_SERIES);
            if !left_out.is_empty() {
                TOLD.call_once(|| {
                    let names = left_out.join(", ");
                    message(format_args!("metrics: more than {MAX_SERIES} series, left out: {names}"));
                });
            }
            respond(StatusCode::OK, dialect.content_type(), exposition.encode(dialect))
        }
        "/healthz" => respond(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        _ => respond(StatusCode::NOT_FOUND, PLAIN, "here are /metrics and /healthz\n".to_owned()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
