// SPDX-License-Identifier: MIT OR Apache-2.0
//! For tests that are programs and not data: send a packet, see what became of it.

use anyhow::{Context as _, Result, bail, ensure};
use nat_common::abi::counters::{Counters, Reason};

use super::{Action, Lab};
use crate::{
    case::{arriving, leaving},
    packet::{
        Packet,
        verify::{Parsed, verify},
    },
};

/// What became of a packet, and why.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Why.
    pub reason: Reason,
    /// What was sent, if anything was: verified, every checksum of it.
    pub sent: Option<Parsed>,
}

impl Seen {
    /// Port or identifier that it was sent from.
    ///
    /// # Errors
    ///
    /// When it was not sent.
    pub fn port(&self) -> Result<u16> {
        let sent = self.sent.as_ref().with_context(|| format!("not sent: {:?}", self.reason))?;
        Ok(sent.source.1)
    }
}

/// Packets that were dropped, and their sender told.
fn told(counters: &Counters) -> u64 {
    counters.refusals_icmp + counters.refusals_reset + counters.resets_on_packet
}

impl Lab {
    /// Sends a packet into port `slot` and finds out its one verdict.
    ///
    /// # Errors
    ///
    /// When there is not exactly one verdict, it contradicts the action, or what was sent is no valid packet.
    pub fn send(&self, slot: usize, packet: &Packet) -> Result<Seen> {
        let mut packet = packet.clone();
        if packet.link.is_none() {
            packet.link = Some(arriving(&self.world, slot, &packet));
        }
        self.send_frame(slot, &packet.frame())
    }

    /// Likewise with a whole frame.
    ///
    /// # Errors
    ///
    /// As [`Lab::send`].
    pub fn send_frame(&self, slot: usize, frame: &[u8]) -> Result<Seen> {
        use nat_common::abi::counters::Fate;
        let before = self.maps.sum_counters()?;
        let outcome = self.run(slot, frame)?;
        let after = self.maps.sum_counters()?;
        ensure!(after.seen == before.seen + 1, "{} packets seen instead of one", after.seen - before.seen);
        let counted = |reason: &&Reason| {
            let number = **reason as usize;
            after.packets[number] != before.packets[number]
        };
        let reasons: Vec<Reason> = Reason::ALL.iter().filter(counted).copied().collect();
        let [reason] = reasons[..] else { bail!("verdicts of one packet: {reasons:?}") };
        let sent = match (reason.fate(), outcome.action) {
            (Fate::Dropped, Action::Drop) | (Fate::Passed, Action::Pass) => None,
            (Fate::Translated, Action::Pass) if reason == Reason::TranslatedToStack => None,
            // A refusal that its sender hears of.
            (Fate::Dropped, Action::Tx) if told(&after) == told(&before) + 1 => {
                Some(verify(&outcome.frame).map_err(anyhow::Error::msg)?)
            }
            (Fate::Translated | Fate::Answered, Action::Tx | Action::Redirect) => {
                Some(verify(&outcome.frame).map_err(anyhow::Error::msg)?)
            }
            (_, action) => bail!("{reason:?} ends in {action:?}"),
        };
        if matches!(outcome.action, Action::Drop | Action::Pass) && reason.fate() != Fate::Translated {
            ensure!(outcome.frame == frame, "{reason:?}, but the frame was changed");
        }
        Ok(Seen { reason, sent })
    }

    /// Sends a packet into port 0 without looking at counters: `Some(port)` when it left.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run the program, or what was sent is no valid packet.
    pub fn open(&self, packet: &Packet) -> Result<Option<u16>> {
        let link = arriving(&self.world, 0, packet);
        let outcome = self.run(0, &packet.clone().link(link).frame())?;
        if !matches!(outcome.action, Action::Redirect | Action::Tx) {
            return Ok(None);
        }
        let sent = verify(&outcome.frame).map_err(anyhow::Error::msg)?;
        ensure!(
            sent.destination_mac == leaving(&self.world, self.world.ports.len() - 1, packet).destination,
            "sent to {:x?}",
            sent.destination_mac
        );
        Ok(Some(sent.source.1))
    }

    /// One counter of one grant: flows alive, opened, refused for want of ports, refused for want of room.
    ///
    /// # Errors
    ///
    /// Those of reading the map.
    pub fn grant(&self, backend: u32, class: u32) -> Result<[u64; 4]> {
        let state = self.maps.grant_state.get(&nat_common::abi::grant::grant_slot(backend, class), 0)?;
        Ok([state.flows, state.opened, state.refused, state.refused_table])
    }
}
