// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables, ratios, machine facts and the JSON file.
use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path, process::Command, thread};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Options,
    gateway::Gateway,
    machine::{Accel, QEMU},
    measure::{Sample, Workload},
};
use crate::exec::output;

/// What the figures were made on and with.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    kernel: String,
    cpu: String,
    cpus: usize,
    load_before: String,
    qemu: String,
    nft: String,
    natgw: String,
    command: String,
}

impl Host {
    pub(crate) fn read(natgw: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let version = |program: &Path| {
            let text = output(Command::new(program).arg("--version")).unwrap_or_default();
            text.lines().next().unwrap_or_default().to_owned()
        };
        let first_word = |path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().next().unwrap_or_default().to_owned()
        };
        Self {
            kernel: first_word("/proc/sys/kernel/osrelease"),
            cpu: model.map_or_else(String::new, |(_, model)| model.to_owned()),
            cpus: thread::available_parallelism().map_or(0, usize::from),
            load_before: first_word("/proc/loadavg"),
            qemu: version(Path::new(QEMU)),
            nft: version(Path::new("nft")),
            natgw: version(natgw),
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        }
    }
}

/// All measurements with one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) package: String,
    /// As `uname -r` of the gateway says.
    pub(crate) release: String,
    pub(crate) accel: Accel,
    pub(crate) reason: String,
    pub(crate) samples: Vec<Sample>,
    /// What had to be repeated.
    pub(crate) remarks: Vec<String>,
}

/// Median, least and greatest.
type Spread = (f64, f64, f64);

impl Series {
    fn spread(&self, gateway: Gateway, workload: Workload, of: impl Fn(&Sample) -> f64) -> Option<Spread> {
        let those = self.samples.iter().filter(|s| s.gateway == gateway && s.workload == workload);
        spread(those.map(of).collect())
    }

    fn vcpu(&self, gateway: Gateway, workload: Workload) -> Option<f64> {
        self.spread(gateway, workload, Sample::vcpu_per_packet).map(|(median, ..)| median)
    }

    fn workloads(&self) -> BTreeSet<Workload> {
        self.samples.iter().map(|sample| sample.workload).collect()
    }

    pub(crate) fn text(&self) -> String {
        let Self { package, release, accel, reason, remarks, .. } = self;
        let mut text = format!("\nguest Linux {release} ({package}), -accel {} ({reason})\n\n", accel.name());
        text += "bench        flows    gateway     vCPU us/packet  least - most   of masq.  arrived   kpps\n";
        for workload in self.workloads() {
            let reference = self.vcpu(Gateway::Masquerade, workload);
            for gateway in Gateway::ALL {
                let Some((median, least, most)) = self.spread(gateway, workload, Sample::vcpu_per_packet)
                else {
                    continue;
                };
                let ratio = reference
                    .map_or_else(|| "-".to_owned(), |masquerade| format!("{:.2}", median / masquerade));
                let middle = |of: fn(&Sample) -> f64| self.spread(gateway, workload, of).map_or(0.0, |s| s.0);
                let _infallible = writeln!(
                    text,
                    "{:<12} {:<8} {gateway:<11} {median:>14.2}  {least:>5.2} - {most:<5.2}  {ratio:>8}  {:>6.1} %  {:>5.1}",
                    workload.bench(),
                    workload.flows(),
                    100.0 * middle(Sample::delivered),
                    middle(Sample::rate) / 1000.0
                );
            }
            if let Some(ratio) = self.ratio(workload) {
                let above = self.ratio_above_floor(workload);
                let above = above.map_or_else(String::new, |above| format!("; above the floor {above:.2}"));
                let _infallible =
                    writeln!(text, "  nftables / natgw, gateway CPU a packet: {ratio:.2}{above}");
            }
        }
        for remark in remarks {
            let _infallible = writeln!(text, "note: {remark}");
        }
        text
    }

    /// How many times the CPU time of natgw nftables takes for a packet.
    fn ratio(&self, workload: Workload) -> Option<f64> {
        Some(self.vcpu(Gateway::Masquerade, workload)? / self.vcpu(Gateway::Natgw, workload)?)
    }

    /// The same of what either takes beyond the floor: receiving, sending and interrupts, which are most of it.
    fn ratio_above_floor(&self, workload: Workload) -> Option<f64> {
        let floor = self.vcpu(Gateway::Floor, workload)?;
        let (masquerade, natgw) =
            (self.vcpu(Gateway::Masquerade, workload)? - floor, self.vcpu(Gateway::Natgw, workload)? - floor);
        // Within the noise a quotient says nothing.
        (masquerade > 0.0 && natgw > 0.05 * floor).then(|| masquerade / natgw)
    }

    fn json(&self) -> Value {
        let Self { package, release, accel, reason, samples, remarks } = self;
        let medians: Vec<Value> = self
            .workloads()
            .into_iter()
            .flat_map(|workload| {
                Gateway::ALL.map(|gateway| {
                    json!({
                        "bench": workload.bench(), "flows": workload.flows(), "gateway": gateway.name(),
                        "gateway_vcpu_us_per_packet": self.vcpu(gateway, workload),
                        "delivered": self.spread(gateway, workload, Sample::delivered).map(|s| s.0),
                        "packets_per_second": self.spread(gateway, workload, Sample::rate).map(|s| s.0),
                    })
                })
            })
            .collect();
        json!({
            "ratios": self.workloads().into_iter().map(|workload| json!({
                "bench": workload.bench(), "flows": workload.flows(), "nftables_natgw": self.ratio(workload),
                "nftables_natgw_above_floor": self.ratio_above_floor(workload),
            })).collect::<Vec<_>>(),
            "package": package, "kernel": release, "accel": accel.name(), "accel_reason": reason,
            "medians": medians, "samples": samples.iter().map(Sample::json).collect::<Vec<_>>(), "remarks": remarks,
        })
    }
}

pub(crate) fn heading(host: &Host, options: &Options) -> String {
    let Host { kernel, cpu, cpus, load_before, qemu, nft, natgw, .. } = host;
    let rate =
        if options.rate == 0 { "as fast as can be".to_owned() } else { format!("{} pps", options.rate) };
    format!(
        "\nhost Linux {kernel}, {cpu}, {cpus} CPUs, load before the run {load_before}; {qemu}; {nft}; {natgw}\n\
         {} packets of {} bytes, offered {rate}, medians of {}\n",
        options.packets, options.frame, options.repeat
    )
}

pub(crate) fn write_json(host: &Host, options: &Options, series: &[Series], to: &Path) -> Result<()> {
    let Host { kernel, cpu, cpus, load_before, qemu, nft, natgw, command } = host;
    let document = json!({
        "host": {
            "kernel": kernel, "cpu": cpu, "cpus": cpus, "load_before": load_before, "qemu": qemu, "nft": nft,
            "natgw": natgw, "command": command,
        },
        "options": {
            "packets": options.packets, "frame": options.frame, "rate": options.rate,
            "repeat": options.repeat,
        },
        "kernels": series.iter().map(Series::json).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&document)?;
    fs::write(to, text + "\n").with_context(|| format!("cannot write `{}`", to.display()))
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let (upper, least, most) = (*values.get(values.len() / 2)?, *values.first()?, *values.last()?);
    let lower = *values.get((values.len() - 1) / 2)?;
    Some((f64::midpoint(lower, upper), least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(gateway: Gateway, vcpu_nanoseconds: u64) -> Sample {
        Sample {
            gateway,
            workload: Workload::Established(256),
            sent: 1000,
            received: 1000,
            checked: 1,
            microseconds: 100_000,
            vcpu_nanoseconds,
            idle: 0.01,
        }
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_both_middles() {
        assert_eq!(spread(Vec::new()), None);
        assert_eq!(spread(vec![9.0, 1.0, 2.0]), Some((2.0, 1.0, 9.0)));
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 9.0]), Some((3.0, 1.0, 9.0)));
    }

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let samples =
            [(Gateway::Floor, [3, 3, 3]), (Gateway::Masquerade, [9, 10, 30]), (Gateway::Natgw, [4, 5, 6])];
        let samples =
            samples.iter().flat_map(|(gateway, times)| times.map(|time| sample(*gateway, time * 1_000_000)));
        let series = Series {
            package: "linux-image-6.12.1-cloud-amd64".to_owned(),
            release: "6.12.1".to_owned(),
            accel: Accel::Tcg,
            reason: "no /dev/kvm".to_owned(),
            samples: samples.collect(),
            remarks: vec!["repeated once".to_owned()],
        };
        assert_eq!(series.ratio(Workload::Established(256)), Some(2.0));
        let text = series.text();
        assert!(
            text.contains("nftables / natgw, gateway CPU a packet: 2.00; above the floor 3.50"),
            "{text}"
        );
        assert!(text.contains("note: repeated once"), "{text}");
        assert_eq!(series.json()["medians"][3]["gateway_vcpu_us_per_packet"], 5.0);
    }
}
