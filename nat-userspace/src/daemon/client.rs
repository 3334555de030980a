// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks a running daemon over its control socket. Blocking, for commands.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::{
    http::LARGEST,
    status::{ApplyRequest, ApplyStatus, DaemonStatus, Failure, ReloadStatus},
};

/// How long a command waits for an answer. A reload with a thousand backends takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// State of the daemon behind the control socket at `path`; `None`: no daemon listens there.
///
/// # Errors
///
/// When the socket may not be opened, or the daemon does not answer in time or not as expected.
pub fn status(path: &Path) -> Result<Option<DaemonStatus>> {
    ask(path, "GET", "/v1/status", &[])
}

/// Has the daemon reload its configuration; `None`: no daemon listens there.
///
/// # Errors
///
/// As [`status`]. A configuration that was refused is not an error here: see [`ReloadStatus::ok`].
pub fn reload(path: &Path) -> Result<Option<ReloadStatus>> {
    ask(path, "POST", "/v1/reload", &[])
}

/// Has the daemon put another configuration in force; `None`: no daemon listens there.
///
/// # Errors
///
/// As [`status`], or the text is too large. A configuration that was refused is not an error here: see
/// [`ReloadStatus::ok`].
pub fn apply(path: &Path, request: &ApplyRequest) -> Result<Option<ApplyStatus>> {
    let body = serde_json::to_vec(request).context("encoding the request")?;
    ensure!(
        body.len() <= LARGEST,
        "`{}` takes {} bytes as JSON, and the daemon takes {LARGEST}: write backends as prefixes",
        request.file,
        body.len()
    );
    ask(path, "POST", "/v1/apply", &body)
}

fn ask<T: DeserializeOwned>(path: &Path, method: &str, resource: &str, body: &[u8]) -> Result<Option<T>> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("opening control socket `{}`", path.display()));
        }
    };
    let answer = exchange(&mut stream, method, resource, body)
        .with_context(|| format!("asking the daemon at `{}`", path.display()))?;
    let (head, body) = split(&answer)
        .with_context(|| format!("`{}` does not answer in HTTP: is it natgw's?", path.display()))?;
    if head.contains(" 200 ") {
        return serde_json::from_slice(body)
            .map(Some)
            .with_context(|| format!("the daemon at `{}` is of another version", path.display()));
    }
    let failure: Failure =
        serde_json::from_slice(body).unwrap_or_else(|_| Failure { error: head.to_owned() });
    bail!("the daemon at `{}` says: {}", path.display(), failure.error)
}

fn exchange(stream: &mut UnixStream, method: &str, resource: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!("{method} {resource} HTTP/1.1\r\nHost: natgw\r\nConnection: close\r\n");
    write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status line and body. The server closes after a body of known length, so there is nothing to unchunk.
fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?.lines().next()?;
    head.starts_with("HTTP/1.").then_some((head, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_at_the_empty_line() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(split(answer), Some(("HTTP/1.1 200 OK", &b"{}"[..])));
        assert_eq!(split(b"SSH-2.0-x\r\n\r\n"), None);
        assert_eq!(split(b"HTTP/1.1 200 OK\r\n"), None);
    }

    #[test]
    fn a_text_that_the_daemon_would_not_take_is_not_sent() {
        let request = ApplyRequest { file: "big.toml".to_owned(), text: "#".repeat(LARGEST) };
        let error = apply(Path::new("/nonexistent/natgw.sock"), &request).expect_err("too large");
        assert!(error.to_string().starts_with("`big.toml` takes 41943"), "{error}");
        let request = ApplyRequest { text: String::new(), ..request };
        assert_eq!(apply(Path::new("/nonexistent/natgw.sock"), &request).ok(), Some(None));
    }

    #[test]
    fn no_socket_means_no_daemon() {
        assert_eq!(status(Path::new("/nonexistent/natgw.sock")).ok(), Some(None));
    }
}
