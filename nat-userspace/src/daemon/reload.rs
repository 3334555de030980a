// SPDX-License-Identifier: MIT OR Apache-2.0
//! Another configuration: by SIGHUP or `POST /v1/reload` from the daemon's own file, by `POST /v1/apply` from a text.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use anyhow::Result;
use tracing::info;

use super::{
    events::seconds,
    notify,
    run::Daemon,
    status::{ApplyRequest, ApplyStatus, ReloadStatus},
};
use crate::config::{self, ConfigError};

type Loaded = Result<(config::Gateway, Vec<String>), ConfigError>;

impl Daemon {
    /// Reads the file that the daemon was started with again.
    pub(super) async fn reload(&mut self) -> ReloadStatus {
        let start = Instant::now();
        notify::reloading();
        let loaded = self.options.load();
        let status = self.put_in_force(loaded, "reload", start).await;
        if status.ok {
            self.in_force.clone_from(&self.options.config);
            info!("configuration reloaded in {} ms", status.milliseconds);
        }
        status
    }

    /// Takes the configuration in `request`, until the next reload or restart.
    pub(super) async fn apply(&mut self, request: ApplyRequest) -> ApplyStatus {
        let start = Instant::now();
        notify::reloading();
        let loaded = self.options.parse(&request.file, request.text);
        let invalid = loaded.is_err();
        let reload = self.put_in_force(loaded, "apply", start).await;
        if reload.ok {
            self.in_force = PathBuf::from(&request.file);
            info!("configuration `{}` applied in {} ms", request.file, reload.milliseconds);
        }
        ApplyStatus { reload, invalid, started_with: absolute(&self.options.config) }
    }

    async fn put_in_force(&mut self, loaded: Loaded, what: &str, start: Instant) -> ReloadStatus {
        let result = match loaded {
            Ok((config, warnings)) => self.gateway.reload(config).await.map(|()| warnings),
            Err(error) => Err(error.into()),
        };
        let mut status = ReloadStatus { at: seconds(SystemTime::now()), ..ReloadStatus::default() };
        match result {
            Ok(warnings) => {
                self.follow_logs();
                self.learn_routes().await;
                status = ReloadStatus { ok: true, warnings, ..status };
            }
            Err(error) => {
                let error = error.context(format!("{what} refused, the old configuration stays in force"));
                self.failed(&error);
                status.error = Some(format!("{error:#}"));
            }
        }
        status.milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_reload = Some(status.clone());
        notify::ready();
        status
    }
}

/// `path` as other processes understand it.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
