// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control socket: HTTP and JSON on a Unix socket that only its owner may open. Handlers hold no state; they ask
//! the loop.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc::Sender, oneshot},
};
use tracing::warn;

use super::{
    Event,
    status::{ApplyRequest, ApplyStatus, DaemonStatus, Failure, ReloadStatus},
};

/// Largest body of a request, in bytes: more than 4,096 backends with names take.
pub(super) const LARGEST: usize = 4 << 20;

/// A question to the loop, with the way back.
#[derive(Debug)]
pub(super) enum Ask {
    /// `GET /v1/status`.
    Status(oneshot::Sender<Box<DaemonStatus>>),
    /// `POST /v1/reload`.
    Reload(oneshot::Sender<ReloadStatus>),
    /// `POST /v1/apply`.
    Apply(Box<ApplyRequest>, oneshot::Sender<ApplyStatus>),
}

/// Removes the socket file when the daemon ends; a later one replaces it if that did not happen.
#[derive(Debug)]
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing depends on it: a socket file without a listener refuses connections.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at `path` and answers from a task of the current runtime.
///
/// # Errors
///
/// When the socket cannot be made. The lock has been taken by then, so an old socket file is nobody's.
pub(super) fn serve(path: &Path, events: Sender<Event>) -> Result<Socket> {
    let listen = || -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    let listener = listen().with_context(|| format!("making control socket `{}`", path.display()))?;
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/apply", post(apply))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(events);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            warn!("control socket: {error}");
        }
    });
    Ok(Socket(path.to_owned()))
}

async fn status(State(events): State<Sender<Event>>) -> Response {
    let (answer, wait) = oneshot::channel();
    answered(events, Ask::Status(answer), wait).await
}

async fn reload(State(events): State<Sender<Event>>) -> Response {
    let (answer, wait) = oneshot::channel();
    answered(events, Ask::Reload(answer), wait).await
}

async fn apply(State(events): State<Sender<Event>>, body: Result<Bytes, BytesRejection>) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return failure(error.status(), &format!("the request is larger than {LARGEST} bytes"));
        }
        Err(error) => return failure(error.status(), &error.body_text()),
    };
    let request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let text = format!("the request is not {{\"file\": …, \"text\": …}}: {error}");
            return failure(StatusCode::BAD_REQUEST, &text);
        }
    };
    let (answer, wait) = oneshot::channel();
    answered(events, Ask::Apply(Box::new(request), answer), wait).await
}

async fn answered<T: serde::Serialize>(
    events: Sender<Event>,
    ask: Ask,
    wait: oneshot::Receiver<T>,
) -> Response {
    if events.send(Event::Http(ask)).await.is_ok()
        && let Ok(answer) = wait.await
    {
        return Json(answer).into_response();
    }
    failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon is about to end")
}

async fn unknown() -> Response {
    failure(StatusCode::NOT_FOUND, "there is GET /v1/status, POST /v1/reload and POST /v1/apply")
}

fn failure(code: StatusCode, text: &str) -> Response {
    (code, Json(Failure { error: text.to_owned() })).into_response()
}
