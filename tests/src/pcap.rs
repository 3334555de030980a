// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames of failed tests as pcap files (classic format, Ethernet link type), under `target/pcap/`.

use std::path::{Path, PathBuf};

/// Writes `frames` and returns the path.
///
/// # Errors
///
/// Those of creating the directory and the file.
pub fn write(test: &str, frames: &[Vec<u8>]) -> std::io::Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pcap");
    std::fs::create_dir_all(&directory)?;
    let mut bytes = Vec::new();
    bytes.extend(0xa1b2_c3d4u32.to_le_bytes());
    bytes.extend(2u16.to_le_bytes());
    bytes.extend(4u16.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(65_535u32.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    for (second, frame) in (0u32..).zip(frames) {
        let length = u32::try_from(frame.len()).map_err(std::io::Error::other)?;
        for word in [second, 0, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    let path = directory.join(format!("{test}.pcap"));
    std::fs::write(&path, bytes)?;
    Ok(path)
}
