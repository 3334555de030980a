// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hardware VLAN stripping: a device that takes the tag out of the frame hides it from XDP.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_GFLAGS`, `ETHTOOL_SFLAGS`, `ETH_FLAG_RXVLAN` (include/uapi/linux/ethtool.h).
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const RX_VLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether `device` takes VLAN tags out of received frames. A device that cannot say so does not.
///
/// # Errors
///
/// When no socket can be opened.
pub(super) fn vlan_stripping(device: &str) -> Result<bool> {
    match flags(device, GET_FLAGS, 0) {
        Ok(flags) => Ok(flags & RX_VLAN != 0),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("asking `{device}` for its offloads")),
    }
}

/// Switches it.
///
/// # Errors
///
/// When the driver refuses.
pub(super) fn set_vlan_stripping(device: &str, on: bool) -> Result<()> {
    let switch = || {
        let before = flags(device, GET_FLAGS, 0)?;
        let wanted = if on { before | RX_VLAN } else { before & !RX_VLAN };
        flags(device, SET_FLAGS, wanted)
    };
    let word = if on { "on" } else { "off" };
    switch()
        .map(drop)
        .with_context(|| format!("switching VLAN stripping {word}: try `ethtool -K {device} rxvlan {word}`"))
}

fn flags(device: &str, command: u32, data: u32) -> io::Result<u32> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a socket that was just opened and that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut value = Value { command, data };
    let mut name = [0; libc::IFNAMSIZ];
    if device.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    // SAFETY: `request` and the `value` it points to live through the call, which writes only to them.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
