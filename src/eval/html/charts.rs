//! The two curves of confidence, drawn as inline SVG.

use std::fmt::{self, Write as _};

use super::markup::{Text, counted, percent};
use crate::eval::{Calibration, Coverage, Interval};

/// Size of a drawing; small enough that its text stays readable when a phone shows it whole.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 270.0;

/// The plot within the drawing.
const LEFT: f64 = 40.0;
const RIGHT: f64 = 350.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 228.0;

/// Both axes are shares; the vertical one may begin above 0.
struct Plot {
    svg: String,
    lowest: f64,
}

impl Plot {
    fn new(label: &str, x_title: &str, y_title: &str, lowest: f64) -> Self {
        let svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", Text(label));
        let mut plot = Self { svg, lowest };
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let share_up = lowest + share * (1.0 - lowest);
            let (x, y) = (plot.x(share), plot.y(share_up));
            plot.add(format_args!(r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/>"#));
            plot.text("tick", (LEFT - 6.0, y + 4.0), "end", &tick(share_up));
            plot.text("tick", (x, BOTTOM + 16.0), "middle", &tick(share));
        }
        plot.text("axis", ((LEFT + RIGHT) / 2.0, HEIGHT - 6.0), "middle", x_title);
        let middle = (TOP + BOTTOM) / 2.0;
        plot.add(format_args!(
            r#"<text class="axis" transform="translate(10 {middle:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            Text(y_title)
        ));
        plot
    }

    fn add(&mut self, markup: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.svg, "{markup}");
    }

    fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = Text(text);
        self.add(format_args!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#));
    }

    fn point(&mut self, (x, y): (f64, f64), radius: f64, title: &str) {
        let (x, y, title) = (self.x(x), self.y(y), Text(title));
        self.add(format_args!(
            r#"<circle class="point" cx="{x:.1}" cy="{y:.1}" r="{radius:.1}"><title>{title}</title></circle>"#
        ));
    }

    fn x(&self, share: f64) -> f64 {
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn y(&self, share: f64) -> f64 {
        let height = (share - self.lowest) / (1.0 - self.lowest);
        BOTTOM - height.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    fn path_of(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (x, y) in points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            // Writing to a String cannot fail.
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(x), self.y(y));
        }
        path
    }

    fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let path = self.path_of(points);
        self.add(format_args!(r#"<path class="{class}" d="{path}"/>"#));
    }

    fn finish(mut self) -> String {
        self.svg += "</svg>\n";
        self.svg
    }
}

/// Confidence against accuracy: on the diagonal, confidence can be taken at its word.
pub(super) fn reliability(calibration: &Calibration) -> String {
    let label = format!(
        "Reliability: of the answers with each confidence, the share that is right; calibration error {} %",
        percent(calibration.expected_calibration_error)
    );
    let mut plot = Plot::new(&label, "confidence of the model, %", "right, %", 0.0);
    plot.line("ideal", [(0.0, 0.0), (1.0, 1.0)].into_iter());
    plot.line("curve", calibration.bins.iter().map(|bin| (bin.confidence, bin.accuracy)));
    let most = calibration.bins.iter().map(|bin| bin.n).max().unwrap_or(1) as f64;
    for bin in &calibration.bins {
        let Interval { low, high } = bin.interval;
        plot.line("error", [(bin.confidence, low), (bin.confidence, high)].into_iter());
        let radius = 3.0 + 6.0 * (bin.n as f64 / most).sqrt();
        let (confidence, accuracy) = (percent(bin.confidence), percent(bin.accuracy));
        let title = format!("{}: confidence {confidence} %, right {accuracy} %", counted(bin.n, "answer"));
        plot.point((bin.confidence, bin.accuracy), radius, &title);
    }
    plot.finish()
}

/// Accuracy against coverage: how many answers could go out unread, and how right these are.
pub(super) fn coverage(calibration: &Calibration, others: &[(&str, &Calibration)]) -> String {
    let all = others.iter().map(|(_, other)| *other).chain([calibration]);
    let least = all.flat_map(|one| &one.coverage).map(|point| point.accuracy).fold(1.0, f64::min);
    // A scale of whole fifths that leaves the lowest point above the axis.
    let lowest = ((least * 5.0).ceil() - 1.0).clamp(0.0, 4.0) / 5.0;
    let label = "Coverage: of the answers the model is surest of, the share that is right";
    let mut plot = Plot::new(label, "answered, the surest first, %", "right, %", lowest);
    let points = &calibration.coverage;
    let up = points.iter().map(|point| (point.coverage, point.interval.high));
    let back = points.iter().rev().map(|point| (point.coverage, point.interval.low));
    let band = plot.path_of(up.chain(back));
    plot.add(format_args!(r#"<path class="band" d="{band}Z"/>"#));
    for (name, other) in others {
        plot.line("other", other.coverage.iter().map(|point| (point.coverage, point.accuracy)));
        if let Some(last) = other.coverage.last() {
            let below = (plot.y(last.accuracy) + 13.0).min(BOTTOM - 3.0);
            plot.text("tick", (plot.x(last.coverage) - 2.0, below), "end", name);
        }
    }
    plot.line("curve", points.iter().map(|point| (point.coverage, point.accuracy)));
    // Thresholds that coincide are one point.
    let mut reached: Vec<Coverage> = calibration.thresholds.iter().map(|threshold| threshold.reached).collect();
    reached.dedup();
    for point in reached {
        let [confidence, coverage, accuracy] = [point.confidence, point.coverage, point.accuracy].map(percent);
        let title = format!("confidence {confidence} % and more: {coverage} % of the answers, {accuracy} % right");
        plot.point((point.coverage, point.accuracy), 4.5, &title);
    }
    plot.finish()
}

fn tick(share: f64) -> String {
    format!("{:.0}", 100.0 * share)
}
