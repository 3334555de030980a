// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that come from nowhere and end in nothing, so that the gateway is what a measurement is about.
//!
//! `BPF_PROG_TEST_RUN` in its live mode (Linux 5.18) runs a small XDP program that writes a frame and redirects it to
//! a link, millions of times a second: no socket, no stack of a client. At the other end another one drops them.
//! Both programs are a few instructions, assembled here.

use std::{
    io,
    net::SocketAddrV4,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::namespace::{Namespace, output};

/// Connections that the frames belong to: so many consecutive source ports, a power of two.
pub(super) const FLOWS: u32 = 256;
/// First of these ports.
const FIRST_PORT: u16 = 20_000;
/// Frames of one system call, about 50 ms.
const BURST: u32 = 1 << 16;
/// Bytes of a frame without its checksum: the least that Ethernet carries.
const LENGTH: usize = 60;

/// Commands and constants of `bpf(2)` (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const BPF_FUNC_GET_PRANDOM_U32: i32 = 7;
const BPF_FUNC_REDIRECT: i32 = 23;
const XDP_DROP: i32 = 1;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    rest: [u32; 4],
}

/// Likewise for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context: [u32; 6],
    flags: u32,
    cpu: u32,
    batch: u32,
    unused: u32,
}

/// Likewise for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is the beginning of the union for this command, of the length that is passed; what it
    // points to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn descriptor(number: libc::c_long) -> Result<OwnedFd> {
    let number = libc::c_int::try_from(number)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn load(program: &[Instruction]) -> Result<OwnedFd> {
    let mut attributes = Load {
        kind: BPF_PROG_TYPE_XDP,
        instruction_count: u32::try_from(program.len())?,
        instructions: program.as_ptr() as u64,
        licence: c"Dual MIT/GPL".as_ptr() as u64,
        ..Load::default()
    };
    descriptor(bpf(BPF_PROG_LOAD, &mut attributes).context("loading a program of a few instructions")?)
}

/// An Ethernet link as it is seen in its namespace.
#[derive(Clone, Copy, Debug)]
struct Port {
    index: u32,
    mac: [u8; 6],
}

fn port(namespace: &Namespace, name: &str) -> Result<Port> {
    let text = output(namespace.command("ip")?.args(["-json", "link", "show", "dev", name]))?;
    let listed: Value = serde_json::from_str(&text).context("reading what `ip -json` printed")?;
    let found = || {
        let bytes = listed[0]["address"].as_str()?.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let mac = bytes.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()?;
        Some(Port { index: u32::try_from(listed[0]["ifindex"].as_u64()?).ok()?, mac })
    };
    found().with_context(|| format!("`ip` tells no index and MAC address of `{name}`: {text}"))
}

/// Drops everything that arrives at `interface`, until it is dropped itself.
#[derive(Debug)]
pub(super) struct Drain {
    _link: OwnedFd,
}

impl Drain {
    pub(super) fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = port(namespace, interface)?.index;
        let program = load(&[number(0, XDP_DROP), EXIT])?;
        let mut attributes = LinkCreate {
            program: u32::try_from(program.as_raw_fd())?,
            interface: index,
            attach_type: BPF_XDP,
            flags: 0,
        };
        let attach = || Ok(bpf(BPF_LINK_CREATE, &mut attributes)?);
        let link = namespace.run(attach).with_context(|| format!("attaching to `{interface}`"))?;
        Ok(Self { _link: descriptor(link)? })
    }
}

/// Makes UDP datagrams of [`FLOWS`] connections.
#[derive(Debug)]
pub(super) struct Source {
    program: OwnedFd,
}

impl Source {
    /// From `client`, a host whose `eth0` leads to the link `towards` of `gateway`.
    pub(super) fn new(
        (client, from): (&Namespace, SocketAddrV4),
        (gateway, towards): (&Namespace, &str),
        to: SocketAddrV4,
    ) -> Result<Self> {
        let (own, other) = (port(client, "eth0")?, port(gateway, towards)?);
        let frame = datagram(own.mac, other.mac, from, to);
        Ok(Self { program: load(&writer(&frame, own.index)?)? })
    }

    /// Sends [`BURST`] frames. To be called in the client's namespace.
    pub(super) fn burst(&self) -> Result<()> {
        let frame = [0_u8; LENGTH];
        let mut attributes = TestRun {
            program: u32::try_from(self.program.as_raw_fd())?,
            size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr() as u64,
            repeat: BURST,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            ..TestRun::default()
        };
        match bpf(BPF_PROG_TEST_RUN, &mut attributes) {
            // A signal: whoever waits finds out.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => bail!("sending live frames: {error}"),
            Ok(_) => Ok(()),
        }
    }
}

/// A frame with an 18-byte datagram; no UDP checksum, so that the port may vary.
fn datagram(own: [u8; 6], other: [u8; 6], from: SocketAddrV4, to: SocketAddrV4) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    let total = LENGTH as u16 - 14;
    frame[..6].copy_from_slice(&other);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..30].copy_from_slice(&from.ip().octets());
    frame[30..34].copy_from_slice(&to.ip().octets());
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame[34..36].copy_from_slice(&FIRST_PORT.to_be_bytes());
    frame[36..38].copy_from_slice(&to.port().to_be_bytes());
    frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    frame
}

const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, value: 0 };

const fn both(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, value }
}

/// `to = value`
const fn number(to: u8, value: i32) -> Instruction {
    both(0xb7, to, 0, 0, value)
}

/// `r0 = function(r1, r2, …)`
const fn call(function: i32) -> Instruction {
    both(0x85, 0, 0, 0, function)
}

/// The program that writes `frame`, with a source port chosen at random, and redirects it. The whole of it every time:
/// pages come back with what others have written.
fn writer(frame: &[u8; LENGTH], interface: u32) -> Result<Vec<Instruction>> {
    ensure!(FLOWS.is_power_of_two() && FLOWS <= 1 << 8, "the low byte of the port varies");
    let mut program = vec![
        both(0xbf, 6, 1, 0, 0),                     // r6 = context
        call(BPF_FUNC_GET_PRANDOM_U32),             // r0 = random
        both(0x57, 0, 0, 0, FLOWS as i32 - 1),      // r0 &= FLOWS - 1
        both(0x07, 0, 0, 0, i32::from(FIRST_PORT)), // r0 += FIRST_PORT
        both(0xdc, 0, 0, 0, 16),                    // r0 = big-endian 16 bits of r0
        both(0x61, 2, 6, 0, 0),                     // r2 = data
        both(0x61, 3, 6, 4, 0),                     // r3 = end of data
        both(0xbf, 4, 2, 0, 0),                     // r4 = r2
        both(0x07, 4, 0, 0, LENGTH as i32),         // r4 += LENGTH
        both(0x2d, 4, 3, LENGTH as i16 / 4 + 5, 0), // if r4 > r3: drop
    ];
    for (at, word) in frame.chunks_exact(4).enumerate() {
        let value = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        program.push(both(0x62, 2, 0, at as i16 * 4, value)); // 32 bits at r2 + 4 * at
    }
    program.extend([
        both(0x6b, 2, 0, 34, 0), // 16 bits at r2 + 34 = r0, the source port
        number(1, i32::try_from(interface)?),
        number(2, 0),
        call(BPF_FUNC_REDIRECT),
        EXIT,
        number(0, XDP_DROP),
        EXIT,
    ]);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_ip_header_sums_up() {
        let end = |last, port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, last), port);
        let frame = datagram([2; 6], [4; 6], end(2, 0), end(9, 9001));
        let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), LENGTH - 14);
        assert_eq!(usize::from(u16::from_be_bytes([frame[38], frame[39]])), LENGTH - 34);
    }

    #[test]
    fn the_branch_of_the_writer_ends_at_the_drop() {
        let program = writer(&[0; LENGTH], 7).expect("a program");
        let branch = program.iter().position(|one| one.code == 0x2d).expect("a branch");
        let target = branch + 1 + program[branch].offset as usize;
        assert_eq!((program[target].code, program[target].value), (0xb7, XDP_DROP));
        assert_eq!(target, program.len() - 2);
    }
}
