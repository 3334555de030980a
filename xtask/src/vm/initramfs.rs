// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests' file system: busybox, the machine's own ip and nft, natgw, the bench's guest program, and modules, as one
//! uncompressed cpio archive (Linux: Documentation/driver-api/early-userspace/buffer-format.rst). Under emulation
//! decompressing would take longer than copying.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cpio::newc;

use super::modules::Module;
use crate::exec::{find_program, output};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const INIT: &str = include_str!("init.sh");
/// Mount points, and where programs expect to be able to write.
const DIRECTORIES: [&str; 9] = ["bin", "dev", "lib", "modules", "proc", "run", "sbin", "sys", "tmp"];

/// A file of the archive.
#[derive(Debug)]
enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// Files by their path without the leading slash.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<String, Source>);

impl Tree {
    /// What every guest has, whatever its kernel.
    ///
    /// # Errors
    ///
    /// Names a program that is not there.
    pub(crate) fn new(natgw: &Path, guest: &Path, object: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.0.insert("init".to_owned(), Source::Bytes(INIT.as_bytes().to_vec()));
        tree.0.insert("bench.bpf.o".to_owned(), Source::File(object.to_owned()));
        tree.program("bin/natgw", natgw)?;
        tree.program("bin/natgw-bench-guest", guest)?;
        for (name, place) in [("busybox", "bin"), ("ip", "sbin"), ("nft", "sbin")] {
            let path = find_program(name).with_context(|| format!("there is no program `{name}`"))?;
            tree.program(&format!("{place}/{name}"), &path)?;
        }
        Ok(tree)
    }

    /// A program, and the shared libraries that it is linked with at the places where its loader looks for them.
    fn program(&mut self, place: &str, path: &Path) -> Result<()> {
        self.0.insert(place.to_owned(), Source::File(path.to_owned()));
        // ldd fails for a static program, and then there is nothing to bring.
        let libraries = output(Command::new("ldd").arg(path).env("LC_ALL", "C")).unwrap_or_default();
        for library in libraries_of(&libraries) {
            self.0.insert(library.trim_start_matches('/').to_owned(), Source::File(library.into()));
        }
        Ok(())
    }

    /// Writes the archive with the modules of one kernel.
    pub(crate) fn write(&self, modules: &[Module], to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot write `{}`", to.display()))?;
        let mut archive = Archive { out: BufWriter::new(file), inode: 0, made: Vec::new() };
        for directory in DIRECTORIES {
            archive.directory(directory)?;
        }
        for (place, source) in &self.0 {
            match source {
                Source::Bytes(bytes) => archive.file(place, bytes)?,
                Source::File(path) => {
                    let bytes =
                        fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
                    archive.file(place, &bytes)?;
                }
            }
        }
        let mut order = String::new();
        for Module { name, bytes } in modules {
            archive.file(&format!("modules/{name}.ko"), bytes)?;
            order = order + name + "\n";
        }
        archive.file("modules/order", order.as_bytes())?;
        newc::trailer(archive.out)?.flush().with_context(|| format!("cannot write `{}`", to.display()))
    }
}

struct Archive<W: Write> {
    out: W,
    /// Two files of one number would be taken for one with two names.
    inode: u32,
    made: Vec<String>,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, place: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.inode += 1;
        let entry = newc::Builder::new(place).mode(mode).nlink(1).ino(self.inode);
        let size = u32::try_from(bytes.len()).with_context(|| format!("`{place}` is too long for cpio"))?;
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(bytes).and_then(|()| writer.finish().map(drop)).with_context(|| {
            format!("cannot write `{place}` of the initramfs: is there space below target/?")
        })
    }

    /// The kernel makes no parents.
    fn directory(&mut self, place: &str) -> Result<()> {
        let mut parent = String::new();
        for part in place.split('/') {
            if !parent.is_empty() {
                parent.push('/');
            }
            parent.push_str(part);
            if !self.made.contains(&parent) {
                self.made.push(parent.clone());
                self.entry(&parent, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    fn file(&mut self, place: &str, bytes: &[u8]) -> Result<()> {
        if let Some((directory, _)) = place.rsplit_once('/') {
            self.directory(directory)?;
        }
        self.entry(place, PROGRAM, bytes)
    }
}

/// Files in the output of ldd: `name => /path (address)`, or `/path (address)` for the loader.
fn libraries_of(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let place = line.split_once("=> ").map_or(line, |(_, place)| place).trim();
        let path = place.split(" (").next()?;
        path.starts_with('/').then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007f90)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f91)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f92)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries_of(text).collect::<Vec<_>>(), expected);
        assert_eq!(libraries_of("\tstatically linked\n").count(), 0);
    }

    #[test]
    fn files_come_after_their_directories() {
        let mut archive = Archive { out: Vec::new(), inode: 0, made: Vec::new() };
        archive.file("lib/x/libc.so", b"abc").expect("memory takes it");
        archive.file("lib/x/ld.so", b"").expect("memory takes it");
        let bytes = newc::trailer(archive.out).expect("memory takes it");
        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let reader = newc::Reader::new(rest).expect("a well-formed archive");
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode(), reader.entry().file_size()));
            rest = reader.finish().expect("a well-formed archive");
        }
        let expected = [
            ("lib", DIRECTORY, 0),
            ("lib/x", DIRECTORY, 0),
            ("lib/x/libc.so", PROGRAM, 3),
            ("lib/x/ld.so", PROGRAM, 0),
        ];
        assert_eq!(names, expected.map(|(name, mode, size)| (name.to_owned(), mode, size)));
    }
}
