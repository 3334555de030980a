// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the daemon says about itself: the body of `GET /v1/status`.

use serde::{Deserialize, Serialize};

/// State of a running daemon. Times of day are seconds since 1970-01-01 UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Process.
    pub pid: u32,
    /// Version of the program that runs.
    pub version: String,
    /// Instance.
    pub name: String,
    /// File that the configuration in force is from: that of `run`, or that of the last `apply`.
    pub config: String,
    /// When the process started.
    pub started: u64,
    /// Since when packets are translated under this process; `None`: not yet.
    pub ready: Option<u64>,
    /// Configured interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The last reload or `apply` that was asked for, successful or not.
    pub last_reload: Option<ReloadStatus>,
    /// The idle sweep.
    pub sweep: SweepStatus,
    /// Next hops that are kept resolved.
    pub next_hops: Vec<NextHopStatus>,
    /// Errors of the daemon itself, oldest first, at most 16.
    pub errors: Vec<Logged>,
    /// What the data path reported, oldest first, at most 32.
    pub events: Vec<Logged>,
}

/// A configured interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Name as configured.
    pub name: String,
    /// Device that the XDP program is attached to.
    pub device: String,
    /// `inside`, `outside` or `both`.
    pub role: String,
    /// `native`, `generic` or `absent`: the interface does not exist at present.
    pub mode: String,
    /// VLAN numbers of its frames, outermost first.
    pub vlans: Vec<u16>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Address that ICMP errors come from.
    pub address: Option<std::net::Ipv4Addr>,
}

/// Body of `POST /v1/apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// File that the text is from: names it in messages.
    pub file: String,
    /// Configuration, TOML.
    pub text: String,
}

/// How an `apply` went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyStatus {
    /// As of a reload.
    #[serde(flatten)]
    pub reload: ReloadStatus,
    /// Whether it is the configuration that is wrong.
    pub invalid: bool,
    /// File that the daemon was started with: where SIGHUP and a restart lead back to.
    pub started_with: String,
}

/// How a reload or an `apply` went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// When.
    pub at: u64,
    /// Whether the new configuration is in force.
    pub ok: bool,
    /// Why it is not.
    pub error: Option<String>,
    /// What was noticed about a configuration that is in force.
    pub warnings: Vec<String>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// The idle sweep since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SweepStatus {
    /// Passes so far.
    pub passes: u64,
    /// CPU time of the last pass, in milliseconds.
    pub milliseconds: f64,
    /// From its begin to its end, rests included, in milliseconds.
    pub wall_milliseconds: f64,
    /// Slices of it.
    pub slices: u32,
    /// CPU time of the slice that took most of it, in milliseconds.
    pub longest_slice_milliseconds: f64,
    /// Entries that the last pass looked at, both halves.
    pub visited: u64,
    /// Flows that the last pass removed.
    pub reclaimed: u64,
    /// Flows that had expired and were left to a later pass.
    pub pending: u64,
    /// Of these, TCP flows whose ends are still to be told.
    pub untold: u64,
    /// Why the last pass hurried: `table_nearly_full`, `refusals`; empty: it did not.
    pub pressed_by: Vec<String>,
    /// When the last pass ended; `None`: there has been none.
    pub ended: Option<u64>,
    /// Seconds from the end of the last pass to the begin of the next one, if no pressure comes up.
    pub period_seconds: f64,
    /// Flows alive by state, as the last pass saw them.
    pub live: std::collections::BTreeMap<String, u64>,
}

/// A next hop that is kept resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopStatus {
    /// Address.
    pub address: std::net::Ipv4Addr,
    /// Interface.
    pub interface: String,
    /// `resolved`, `unresolved` or `failed`.
    pub state: String,
    /// MAC address if resolved.
    pub mac: Option<String>,
}

/// A line with its time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// When.
    pub at: u64,
    /// What.
    pub text: String,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One sentence.
    pub error: String,
}
