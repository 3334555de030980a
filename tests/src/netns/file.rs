// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configuration files beside the daemon's own.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::daemon::Gateway;

/// A file that is removed with this.
#[derive(Debug)]
pub struct File(PathBuf);

impl File {
    /// Writes `config` for `gateway`; `tag` tells it from its other files.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn new(gateway: &Gateway<'_>, tag: &str, config: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("natgw-{}-{tag}.toml", gateway.name));
        std::fs::write(&path, config.replace("{name}", &gateway.name))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Has the daemon put it in force; returns what the command said.
    ///
    /// # Errors
    ///
    /// With the daemon's log when it was refused.
    pub fn apply(&self, gateway: &Gateway<'_>) -> Result<String> {
        gateway.command(&["apply", "--config", self.path()]).with_context(|| gateway.log())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
