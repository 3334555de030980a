// SPDX-License-Identifier: MIT OR Apache-2.0
//! Map layouts. A change to any of them needs a new [`ABI_VERSION`].
//!
//! Addresses, ports and MAC addresses are kept as they are on the wire (`[u8; N]`, network byte order); everything
//! that is counted or compared as a number is in host byte order. There is no `bool`, `Option` or `enum` in a
//! layout: they have invalid bit patterns.

pub mod config;
pub mod counters;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod grant;
pub mod names;
pub mod policy;
pub mod record;

/// Version of every layout in this module together; kept in [`config::Meta`] and compared on adoption.
pub const ABI_VERSION: u32 = 4;

/// Declares `Pod` for a layout and asserts its size, on both sides of the boundary.
macro_rules! layout {
    ($ty:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$ty>() == $size, "layout changed: new ABI_VERSION needed");
        #[cfg(feature = "user")]
        // SAFETY: the type is `bytemuck::Pod` (checked below): any bytes are valid, no padding.
        unsafe impl aya::Pod for $ty {}
        const _: fn() = || {
            fn plain_data<T: bytemuck::Pod>() {}
            plain_data::<$ty>();
        };
    };
}
pub(crate) use layout;
