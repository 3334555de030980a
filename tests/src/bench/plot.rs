// SPDX-License-Identifier: MIT OR Apache-2.0
//! Charts of one run, as SVG: throughput by flows, cost of a new flow by occupancy, latency. What was not measured is
//! not drawn.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, DrawingArea, IntoDrawingArea as _, LineSeries, RGBColor, Rectangle, SVGBackend, Text,
        WHITE,
    },
    style::Color as _,
};

use super::{gateway::Kind, report::Report};

/// Size of a chart in pixels.
const SIZE: (u32, u32) = (760, 420);

/// Pixels at the right where the names stand.
const LEGEND: u32 = 150;

/// Title, axes and room for both: what all charts have in common. Not a function, because the type of a chart names types
/// that plotters keeps to itself.
macro_rules! frame {
    ($root:expr, $labels:expr, $x:expr, $top:expr) => {
        ChartBuilder::on($root)
            .caption($labels.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(LEGEND)
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d($x, 0.0..$top)
            .map_err(failed)?
    };
}

/// Points of one gateway.
struct Line {
    gateway: &'static str,
    points: Vec<(f64, f64)>,
}

/// What a chart says beside its lines.
struct Labels<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
}

/// Draws what the report has figures for and returns the files.
///
/// # Errors
///
/// When the directory cannot be made or a file cannot be written.
pub(super) fn write(report: &Report, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut written = Vec::new();
    let mut keep = |name: &str, draw: &dyn Fn(&Path) -> anyhow::Result<bool>| -> anyhow::Result<()> {
        let path = directory.join(name);
        if draw(&path).with_context(|| format!("cannot draw {}", path.display()))? {
            written.push(path);
        }
        Ok(())
    };
    keep("throughput.svg", &|path| throughput(report, path))?;
    keep("new-flows.svg", &|path| new_flows(report, path))?;
    keep("port-occupancy.svg", &|path| occupancy(report, path))?;
    keep("latency.svg", &|path| latency(report, path))?;
    Ok(written)
}

/// Million packets a second by flows, of the first direction, frame and set of CPUs.
fn throughput(report: &Report, path: &Path) -> anyhow::Result<bool> {
    let rows = || report.summary.iter().filter(|row| row.bench == "established");
    let Some(first) = rows().next() else { return Ok(false) };
    let lines = by_gateway(|kind| {
        let mut points: Vec<(f64, f64)> = rows()
            .filter(|row| row.gateway == kind.name() && row.direction == first.direction)
            .filter(|row| row.frame_bytes == first.frame_bytes && row.cpus == first.cpus)
            .map(|row| (f64::from(row.flows), row.mpps))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        points
    });
    let title = format!(
        "Established flows, {}, {}-byte frames, {} CPU",
        first.direction.name(),
        first.frame_bytes,
        first.cpus
    );
    let labels = Labels { title: &title, x: "flows (logarithmic)", y: "million packets a second" };
    lines_chart(path, &labels, &lines, true)
}

/// Nanoseconds of a new flow by flows that are open already, of the first frame and set of CPUs.
fn new_flows(report: &Report, path: &Path) -> anyhow::Result<bool> {
    let rows = || report.summary.iter().filter(|row| row.bench == "new-flows");
    let Some(first) = rows().next() else { return Ok(false) };
    let lines = by_gateway(|kind| {
        let row = rows().find(|row| {
            row.gateway == kind.name() && row.frame_bytes == first.frame_bytes && row.cpus == first.cpus
        });
        row.map_or_else(Vec::new, |row| {
            let tenth = f64::from(row.flows) / row.ns_by_tenth.len().max(1) as f64;
            let middle = |number: usize| tenth * (number as f64 + 0.5) / 1000.0;
            row.ns_by_tenth.iter().enumerate().map(|(number, ns)| (middle(number), *ns)).collect()
        })
    });
    let labels = Labels {
        title: "A packet that opens a flow, by flows in the table",
        x: "thousand flows in the table",
        y: "ns a packet",
    };
    lines_chart(path, &labels, &lines, false)
}

/// Nanoseconds of a new flow by ports in use: medians of single runs, by size of the set of ports.
fn occupancy(report: &Report, path: &Path) -> anyhow::Result<bool> {
    let Some(rows) = &report.refusals else { return Ok(false) };
    let bars: Vec<(String, Vec<f64>)> = rows.bars();
    let labels = Labels {
        title: "Live frames to one destination, by its ports in use",
        x: "up to 50, 90, 99 and 100 % of the ports, and without a port",
        y: "ns a packet",
    };
    bars_chart(path, &labels, &bars)
}

/// Microseconds of a request over a connection that stays, at p50, p99 and p99.9.
fn latency(report: &Report, path: &Path) -> anyhow::Result<bool> {
    let Some(figures) = &report.tcp else { return Ok(false) };
    let bars: Vec<(String, Vec<f64>)> =
        figures.summary.iter().map(|row| (row.gateway.to_owned(), row.request_us.clone())).collect();
    let labels = Labels {
        title: "Request and answer over a TCP connection that stays",
        x: "p50, p99 and p99.9",
        y: "µs",
    };
    bars_chart(path, &labels, &bars)
}

fn by_gateway(points: impl Fn(Kind) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |kind: Kind| Line { gateway: kind.name(), points: points(kind) };
    Kind::ALL.into_iter().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// The same colour for the same gateway in every chart; told apart also without red and green.
fn color(gateway: &str) -> RGBColor {
    match Kind::ALL.iter().position(|kind| gateway.starts_with(kind.name())) {
        Some(0) => RGBColor(120, 120, 120),
        Some(1) => RGBColor(86, 180, 233),
        Some(2) => RGBColor(230, 159, 0),
        Some(3) => RGBColor(204, 121, 167),
        Some(4) => RGBColor(0, 114, 178),
        _ => RGBColor(0, 130, 95),
    }
}

fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max) * 1.1
}

/// One line for each gateway, and its name beside the chart; `x` goes by powers of two when it is logarithmic. False when
/// there is nothing to draw.
fn lines_chart(path: &Path, labels: &Labels<'_>, lines: &[Line], logarithmic: bool) -> anyhow::Result<bool> {
    let place = |x: f64| if logarithmic { x.log2() } else { x };
    let points = || lines.iter().flat_map(|line| &line.points).map(|(x, y)| (place(*x), *y));
    let Some(least) = points().map(|point| point.0).min_by(f64::total_cmp) else { return Ok(false) };
    let most = points().map(|point| point.0).fold(least, f64::max);
    let (from, to) = if logarithmic { (least - 1.0, most + 1.0) } else { (0.0, most * 1.05) };
    let root = canvas(path)?;
    let mut chart = frame!(&root, labels, from..to, greatest(points().map(|point| point.1)));
    let number = |x: &f64| format!("{:.0}", if logarithmic { x.exp2() } else { *x });
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(&number)
        .y_label_formatter(&plain)
        .draw()
        .map_err(failed)?;
    for line in lines {
        let color = color(line.gateway);
        let points = line.points.iter().map(|(x, y)| (place(*x), *y));
        let series = LineSeries::new(points, color.stroke_width(2)).point_size(3);
        chart.draw_series(series).map_err(failed)?;
    }
    legend(&root, lines.iter().map(|line| line.gateway))?;
    root.present().map_err(failed)?;
    Ok(true)
}

/// A group of bars for each name, with its values above. False when there is nothing to draw.
fn bars_chart(path: &Path, labels: &Labels<'_>, groups: &[(String, Vec<f64>)]) -> anyhow::Result<bool> {
    let most = groups.iter().map(|(_, bars)| bars.len()).max().unwrap_or(0);
    if most == 0 {
        return Ok(false);
    }
    let width = (most + 1) as f64;
    let to = width * groups.len() as f64;
    let root = canvas(path)?;
    let top = greatest(groups.iter().flat_map(|(_, bars)| bars.iter().copied()));
    let mut chart = frame!(&root, labels, 0.0..to, top);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(0)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .y_label_formatter(&plain)
        .draw()
        .map_err(failed)?;
    let place = |number: usize, bar: usize| number as f64 * width + 0.5 + bar as f64;
    for (number, (name, bars)) in groups.iter().enumerate() {
        let color = color(name);
        let bar = |(bar, value): (usize, &f64)| {
            let x = place(number, bar);
            Rectangle::new([(x + 0.05, 0.0), (x + 0.95, *value)], color.filled())
        };
        chart.draw_series(bars.iter().enumerate().map(bar)).map_err(failed)?;
    }
    // After all bars, which would cover what stands above a lower neighbour.
    for (number, (_, bars)) in groups.iter().enumerate() {
        let text = |(bar, value): (usize, &f64)| {
            let at = (place(number, bar) + 0.1, *value + top * 0.035);
            Text::new(format!("{value:.0}"), at, ("sans-serif", 10))
        };
        chart.draw_series(bars.iter().enumerate().map(text)).map_err(failed)?;
    }
    legend(&root, groups.iter().map(|(name, _)| name.as_str()))?;
    root.present().map_err(failed)?;
    Ok(true)
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn canvas(path: &Path) -> anyhow::Result<Canvas<'_>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    Ok(root)
}

/// Colours and names, in the margin at the right.
fn legend<'a>(root: &Canvas<'_>, names: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    let left = SIZE.0.cast_signed() - LEGEND.cast_signed() + 4;
    for (name, y) in names.zip((50..).step_by(20)) {
        let patch = Rectangle::new([(left, y), (left + 12, y + 12)], color(name).filled());
        root.draw(&patch).map_err(failed)?;
        root.draw(&Text::new(name.to_owned(), (left + 18, y), ("sans-serif", 13))).map_err(failed)?;
    }
    Ok(())
}

fn plain(value: &f64) -> String {
    format!("{value}")
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::{Labels, Line, bars_chart, lines_chart};

    #[test]
    fn charts_are_svg_with_every_gateway_named() {
        let path = std::env::temp_dir().join(format!("natgw-bench-plot-{}.svg", std::process::id()));
        let labels = Labels { title: "t", x: "x", y: "y" };
        let line = |gateway| Line { gateway, points: vec![(256.0, 3.0), (65_536.0, 2.0)] };
        let lines = [line("floor"), line("natgw")];
        for logarithmic in [true, false] {
            assert!(lines_chart(&path, &labels, &lines, logarithmic).expect("draws"));
            let text = std::fs::read_to_string(&path).expect("written");
            assert!(text.starts_with("<svg") && text.contains("floor") && text.contains("natgw"));
        }
        assert!(bars_chart(&path, &labels, &[("natgw".to_owned(), vec![1.0, 2.0])]).expect("draws"));
        assert!(!bars_chart(&path, &labels, &[]).expect("nothing to draw"));
        std::fs::remove_file(&path).expect("removed");
    }
}
