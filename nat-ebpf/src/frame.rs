// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The frame in memory, and the only bounds checks: [`Frame::at`] for the fast path, [`load`] and [`store`] (Linux
//! 5.18) for offsets that depend on packet contents twice over, where pointers would cost the verifier far too many
//! states.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes},
};

/// Start and end of the frame's bytes. Invalid after anything that moves them (`bpf_xdp_adjust_head`, …).
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame of an XDP context.
    #[inline(always)]
    pub(crate) fn of_xdp(ctx: *mut xdp_md) -> Self {
        // SAFETY: the context pointer is the program's argument.
        unsafe { Self { start: (*ctx).data as usize, end: (*ctx).data_end as usize } }
    }

    /// Bytes in the frame.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// A header at `offset`, if all of it is within the frame. `T` has alignment 2 at most: frames start at an even
    /// address, and no header or tag has an odd length.
    #[inline(always)]
    pub(crate) fn at<T>(&self, offset: usize) -> Option<*mut T> {
        const { assert!(align_of::<T>() <= 2, "packet data is aligned to 2 bytes") }
        let header = self.start + offset;
        if header + size_of::<T>() > self.end {
            return None;
        }
        Some(header as *mut T)
    }
}

/// Copies `T` out of the frame.
#[inline(always)]
pub(crate) fn load<T: Copy + Default>(ctx: *mut xdp_md, offset: usize) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the buffer has the length that is passed.
    let code =
        unsafe { bpf_xdp_load_bytes(ctx, offset as u32, (&raw mut value).cast(), size_of::<T>() as u32) };
    if code == 0 { Some(value) } else { None }
}

/// Copies `T` into the frame. Cannot fail where [`load`] of the same bytes succeeded.
#[inline(always)]
pub(crate) fn store<T: Copy>(ctx: *mut xdp_md, offset: usize, value: &T) -> bool {
    // SAFETY: the buffer has the length that is passed.
    unsafe {
        bpf_xdp_store_bytes(
            ctx,
            offset as u32,
            core::ptr::from_ref(value).cast_mut().cast(),
            size_of::<T>() as u32,
        ) == 0
    }
}
