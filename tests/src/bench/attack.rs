// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floods of one backend: what they send, and the thread that does.

use std::{net::Ipv4Addr, sync::atomic::AtomicBool, time::Duration};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf,
    maps::{PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use bench_ebpf::{ATTACK_HALVES, ATTACK_TOS, Attack as State};
use bytemuck::Zeroable as _;

use super::{
    chain::{ATTACKER, Chain, FIRST_DESTINATION, GEN0_MAC, LAN0_MAC},
    generator::{IP, UDP, sum},
    sender::{Limit, Sender, Sent},
};

const STATE: usize = size_of::<State>();
/// Bytes of an attacker's frame.
const LENGTH: u16 = 64;
/// Network for benchmarks (RFC 2544); nobody is there.
const FIRST_VICTIM: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SYN: u8 = 2;

/// A kind of flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    /// UDP from 32,768 source ports to one destination: more than the backend has ports.
    Exhausted,
    /// A new TCP connection with every packet, to 65,536 destinations.
    Syn,
    /// TCP connection attempts from one port to 32,768 ports of one address after the other.
    Scan,
}

impl Attack {
    /// All kinds.
    pub(super) const ALL: [Self; 3] = [Self::Exhausted, Self::Syn, Self::Scan];

    /// What tables say.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted destination",
            Self::Syn => "SYN flood",
            Self::Scan => "port scan",
        }
    }

    fn state(self) -> State {
        let frame = template(self);
        let mut header = [0; ATTACK_HALVES];
        for (half, bytes) in header.iter_mut().zip(frame.chunks_exact(2)) {
            *half = u16::from_ne_bytes([bytes[0], bytes[1]]);
        }
        // Pseudo header without addresses: protocol and length; the source address never changes.
        let pseudo = u32::from(u16::from(frame[IP + 9]).to_be()) + u32::from((LENGTH - UDP as u16).to_be());
        let state = State {
            header,
            tcp: u16::from(self != Self::Exhausted),
            ip_sum: sum(&frame[IP..UDP]),
            transport_sum: pseudo + sum(&frame[IP + 12..IP + 16]) + sum(&frame[UDP..]),
            destination: FIRST_VICTIM.to_bits(),
            ..State::zeroed()
        };
        match self {
            Self::Exhausted => State {
                source_port: 1024,
                source_mask: 0x7fff,
                shift: 15,
                destination_port: 9001,
                destination: FIRST_DESTINATION.to_bits(),
                ..state
            },
            Self::Syn => State {
                source_port: 1024,
                source_mask: 0x3fff,
                shift: 14,
                destination_port: 80,
                destination_mask: 0xffff,
                ..state
            },
            Self::Scan => State {
                source_port: 40_000,
                destination_port: 1,
                port_mask: 0x7fff,
                port_shift: 15,
                destination_mask: 0xffff,
                ..state
            },
        }
    }

    /// Sends this flood from one CPU until `end` is set. Runs on the calling thread.
    pub(super) fn flood(
        self,
        chain: &Chain,
        sender: &mut Sender,
        ebpf: &Ebpf,
        end: &AtomicBool,
    ) -> anyhow::Result<Sent> {
        let frame = template(self);
        let limit = Limit { packets: u64::MAX, time: Duration::MAX };
        chain.generator.enter(|| sender.run((ebpf, "attack"), &frame, limit, Some(end)))?
    }
}

/// Has the attacking program begin a flood anew.
pub(super) fn aim(ebpf: &mut Ebpf, attack: Attack) -> anyhow::Result<()> {
    let cpus = nr_cpus().map_err(|(file, error)| anyhow!("cannot read {file}: {error}"))?;
    let state: [u8; STATE] = bytemuck::cast(attack.state());
    let mut map: PerCpuArray<_, [u8; STATE]> =
        ebpf.map_mut("ATTACK").context("no map `ATTACK`")?.try_into()?;
    map.set(0, PerCpuValues::try_from(vec![state; cpus])?, 0).context("cannot set what the attacker sends")
}

/// A frame of the attacker whose varying fields are zero: destination, ports, checksums.
fn template(attack: Attack) -> Vec<u8> {
    let tcp = attack != Attack::Exhausted;
    let mut frame = Vec::with_capacity(usize::from(LENGTH));
    frame.extend([LAN0_MAC, GEN0_MAC].concat());
    frame.extend([0x08, 0x00, 0x45, ATTACK_TOS]);
    frame.extend((LENGTH - IP as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
    frame.extend(ATTACKER.octets());
    frame.extend([0; 8]);
    if tcp {
        // Sequence number, acknowledgement, header length, flags, window, checksum, urgent pointer.
        frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, SYN, 0x20, 0, 0, 0, 0, 0]);
    } else {
        frame.extend((LENGTH - UDP as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.resize(usize::from(LENGTH), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::{Attack, IP, UDP, template};

    #[test]
    fn headers_are_where_the_program_writes() {
        for attack in Attack::ALL {
            let frame = template(attack);
            assert_eq!(frame.len(), 64);
            assert_eq!(frame[IP + 9], if attack == Attack::Exhausted { 17 } else { 6 });
            assert_eq!(frame[UDP..UDP + 4], [0; 4], "ports");
            let checksum = if attack == Attack::Exhausted { UDP + 6 } else { UDP + 16 };
            assert_eq!(frame[checksum..checksum + 2], [0; 2], "checksum");
        }
    }
}
