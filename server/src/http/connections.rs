//! Connections: how many, how slow they may be, and how they end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::App;

/// Most connections at a time. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;

/// Accepts connections until `shutdown`, then lets the open ones end and unloads the models.
pub(super) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.receive_timeout);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, connection) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        let stream = match connection {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, or a client that is gone: neither is helped by trying again at once.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Tokens are small and should not wait for each other.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // What a client did wrong is answered; a connection that breaks is its own affair.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let patience = app.config.shutdown_timeout;
    let host = Arc::clone(&app.host);
    let closing = tokio::task::spawn_blocking(move || host.close(patience));
    // Everything that was generated has been sent, or its reader does not read.
    let ended = tokio::time::timeout(patience + Duration::from_secs(1), graceful.shutdown());
    let (closed, _) = tokio::join!(closing, ended);
    if let Err(error) = closed {
        tracing::error!("unloading failed: {error}");
    }
}
