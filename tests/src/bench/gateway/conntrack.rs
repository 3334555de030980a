// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connection tracking: room for every flow while masquerade is measured, and an empty table afterwards.

use std::{fs, io, os::fd::AsRawFd as _, os::fd::FromRawFd as _, os::fd::OwnedFd};

use anyhow::Context as _;

use crate::bench::chain::Chain;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
/// Entries allowed while measuring; the usual limit is 262,144 and packets of further flows would be dropped.
const ENTRIES: u64 = 4_194_304;
/// Hash buckets while measuring: one a flow at the largest bench, what a well-tuned host would set.
const WANTED_BUCKETS: u64 = 1_048_576;

/// The machine's limits as they were; dropping this restores them.
#[derive(Debug)]
pub(in crate::bench) struct ConntrackLimits {
    saved: Vec<(&'static str, String)>,
}

impl ConntrackLimits {
    /// Raises the limits that only the initial namespace can set.
    pub(in crate::bench) fn raise() -> anyhow::Result<Self> {
        let mut limits = Self { saved: Vec::new() };
        // Buckets first: writing them changes nf_conntrack_max on some kernels.
        for (path, wanted) in [(BUCKETS, WANTED_BUCKETS), (MAX, ENTRIES)] {
            let old = fs::read_to_string(path).with_context(|| {
                format!("cannot read {path}: is connection tracking there (`modprobe nf_conntrack`)?")
            })?;
            if old.trim().parse::<u64>().is_ok_and(|value| value >= wanted) {
                continue;
            }
            limits.saved.push((path, old.trim().to_owned()));
            fs::write(path, wanted.to_string())
                .with_context(|| format!("cannot raise {path} to {wanted}"))?;
        }
        Ok(limits)
    }
}

impl Drop for ConntrackLimits {
    fn drop(&mut self) {
        for (path, value) in &self.saved {
            if let Err(error) = fs::write(path, value) {
                eprintln!("natgw-bench: {path} was {value} and cannot be put back: {error}");
            }
        }
    }
}

/// The connections of the gateway namespace.
#[derive(Debug)]
pub(in crate::bench) struct ConntrackTable<'a> {
    chain: &'a Chain,
}

impl<'a> ConntrackTable<'a> {
    /// The table of this chain's gateway.
    pub(super) const fn new(chain: &'a Chain) -> Self {
        Self { chain }
    }

    /// Empties the table and returns when it is empty. Left to the namespace's end, that work would go on in the
    /// background of the next measurement.
    pub(super) fn flush(self) -> anyhow::Result<()> {
        self.chain.gateway.enter(flush)?.context("cannot empty the connection table through netlink")
    }
}

/// One request of `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_DELETE` without a tuple: delete everything in this namespace.
pub(in crate::bench) fn flush() -> io::Result<()> {
    const CT_DELETE: u16 = (1 << 8) | 2;
    const LENGTH: u32 = 20;
    // SAFETY: no pointers.
    let socket = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut request = Vec::with_capacity(LENGTH as usize);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(CT_DELETE.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    // nfgenmsg: family AF_INET, version 0, resource 0.
    request.extend([2, 0, 0, 0]);
    // SAFETY: the buffer is valid for its length.
    if unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 64];
    // SAFETY: the buffer is valid for its length.
    let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    let header = size_of::<libc::nlmsghdr>();
    match answer.get(header..header + 4) {
        Some(code) if length >= header + 4 => {
            match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(-code)),
            }
        }
        _ => Err(io::Error::other(format!("answer of {length} bytes, {} expected", header + 4))),
    }
}
