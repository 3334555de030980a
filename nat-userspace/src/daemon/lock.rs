// SPDX-License-Identifier: MIT OR Apache-2.0
//! One daemon per instance: a file that it holds locked as long as it lives, however it ends.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
};

use anyhow::{Context as _, Result, bail};

use crate::datapath::pin::Instance;

/// Held for as long as the value lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `instance` and leaves this process's number in it.
    ///
    /// # Errors
    ///
    /// When another process has it, naming that process, or the file cannot be made.
    pub(super) fn take(instance: &Instance) -> Result<Self> {
        let path = instance.lock();
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("making directory `{}`", directory.display()))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening lock `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text).with_context(|| format!("reading `{}`", path.display()))?;
                let pid = text.trim();
                bail!("natgw is running for instance `{}` already, as process {pid}", instance.name());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking `{}`", path.display()));
            }
        }
        let mut note = || -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note().with_context(|| format!("writing `{}`", path.display()))?;
        Ok(Self { _file: file })
    }
}
