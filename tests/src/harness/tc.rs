// SPDX-License-Identifier: MIT OR Apache-2.0
//! The TC programs, run on single frames.

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use nat_common::abi::names;

use super::Lab;

impl Lab {
    /// Runs the guard of outside port `slot` on a frame that came in by interface `ingress` (0: made here).
    /// Returns the TC action and the frame.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn guard(&self, slot: usize, ingress: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program = self.device(slot).2.program(names::PROGRAM_GUARD).context("no guard in the object")?;
        let guard: &SchedClassifier = program.try_into()?;
        self.run_tc(guard, slot, ingress, frame)
    }

    /// Runs the TC ingress program on a frame that XDP has left to the stack at port `slot`. Returns the TC action; what
    /// it sends leaves by the interfaces.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn hold(&self, slot: usize, frame: &[u8]) -> Result<i32> {
        let program = self.programs[0].2.program(names::PROGRAM_HOLD).context("no hold in the object")?;
        let (action, _) = self.run_tc(program.try_into()?, slot, 0, frame)?;
        Ok(action.cast_signed())
    }

    fn run_tc(
        &self,
        program: &SchedClassifier,
        slot: usize,
        ingress: u32,
        frame: &[u8],
    ) -> Result<(u32, Vec<u8>)> {
        // `struct __sk_buff`: ingress_ifindex at 36, ifindex at 40.
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&ingress.to_ne_bytes());
        let ifindex = self.namespace.index(&self.world.ports[slot].name())?;
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        // What is held may be longer than what it is sent with.
        let mut out = vec![0; frame.len() + 4096];
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }
}
