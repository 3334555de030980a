// SPDX-License-Identifier: MIT OR Apache-2.0

use std::time::Duration;

use super::*;
use crate::{
    cli::snapshot::{self, JSON},
    daemon::status::{DaemonStatus, Logged, SweepStatus},
    datapath::tables::{Attachment, AttachmentKind},
    view::{
        example,
        stats::{Reading, Stats},
    },
};

fn link(kind: AttachmentKind, ifindex: u32) -> Attachment {
    Attachment { pin: format!("link_{ifindex}"), kind, ifindex }
}

fn attached() -> Vec<Attachment> {
    let program = AttachmentKind::Program;
    vec![link(program, 2), link(program, 3), link(AttachmentKind::Guard, 5)]
}

fn daemon() -> DaemonStatus {
    let line = |at, text: &str| Logged { at, text: text.to_owned() };
    DaemonStatus {
        pid: 4242,
        version: "0.1.0".to_owned(),
        name: "default".to_owned(),
        config: "/etc/natgw/natgw.toml".to_owned(),
        started: 1_769_900_000,
        sweep: SweepStatus { passes: 77, ..SweepStatus::default() },
        errors: vec![line(1_769_903_000, "neighbour 203.0.113.254 on wan0 does not answer")],
        events: (0..8)
            .map(|n| line(1_769_903_000 + n, "10.0.0.4: no udp port for 198.51.100.1:53"))
            .collect(),
        ..DaemonStatus::default()
    }
}

fn status(attachments: &[Attachment], daemon: Option<&DaemonStatus>, unpaired: usize) -> Status {
    let instance = example::instance();
    let reading = Reading::of(&example::counters());
    Status::new(&Sources {
        instance: &instance,
        flows: &example::every_flow(&instance),
        unpaired,
        stats: &Stats::new(&instance, &reading, reading.judge(&reading)),
        attachments,
        modes: &HashMap::from([(2, "native"), (3, "generic")]),
        daemon,
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_903_999),
    })
}

fn table(status: &Status) -> Vec<u8> {
    let mut out = Vec::new();
    print(&mut out, Style::PLAIN, status).expect("memory");
    out
}

#[test]
fn tables() {
    snapshot::check("status.txt", &table(&status(&attached(), Some(&daemon()), 0)));
    snapshot::check("status_down.txt", &table(&status(&attached(), None, 0)));
    snapshot::check("status_detached.txt", &table(&status(&[], None, 3)));
}

#[test]
fn json() {
    let mut out = Vec::new();
    render::document(&mut out, &status(&attached(), Some(&daemon()), 0), JSON.one_line).expect("memory");
    snapshot::check("status.json", &out);
}

#[test]
fn translating_means_attached_everywhere() {
    assert!(status(&attached(), None, 0).translating, "the daemon is not needed");
    let program = AttachmentKind::Program;
    for links in [
        vec![],
        vec![link(program, 2)],
        vec![link(program, 2), link(AttachmentKind::Guard, 3)],
        // The interface is gone.
        vec![link(program, 2), link(program, 0)],
        vec![link(program, 2), link(program, 9)],
    ] {
        let status = status(&links, Some(&daemon()), 0);
        assert!(!status.translating, "{links:?}");
        assert!(status.problems.iter().any(|problem| problem.contains("wan0.20")), "{:?}", status.problems);
    }
}

#[test]
fn a_missing_guard_is_a_problem() {
    let program = AttachmentKind::Program;
    let guarded = |links: &[Attachment]| status(links, Some(&daemon()), 0).interfaces[1].guarded;
    assert!(guarded(&attached()));
    // Guards have links, but none is on this interface.
    let elsewhere = [link(program, 2), link(program, 3), link(AttachmentKind::Guard, 9)];
    assert!(!guarded(&elsewhere));
    let problems = status(&elsewhere, Some(&daemon()), 0).problems;
    assert!(problems.iter().any(|problem| problem.contains("no guard on `wan0.20`")), "{problems:?}");
    // Without links at all, as before Linux 6.6, the tables are believed.
    assert!(guarded(&[link(program, 2), link(program, 3)]));
}
