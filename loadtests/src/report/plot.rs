//! Draws one plot as SVG: lines with points, the range of several rounds behind them. Colours are classes, so that
//! the page's style sheet decides them for light and dark.

use std::fmt::Write;

use super::scale::{Axis, Scale, grouped};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 310.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 50.0;

pub struct Plot {
    pub title: String,
    pub x: Side,
    pub y: Side,
    pub lines: Vec<Line>,
}

/// One side of a plot.
pub struct Side {
    pub label: String,
    pub scale: Scale,
}

pub struct Line {
    pub contender: String,
    /// In the direction of x.
    pub points: Vec<Point>,
    /// Points are drawn where each is a measurement, not where they trace a curve.
    pub dots: bool,
    /// Drawn broken: a second figure of the same contender.
    pub dashed: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Least and most of several rounds.
    pub range: (f64, f64),
}

impl Plot {
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::over(self.x.scale, points().map(|point| point.x));
        let y = Axis::over(self.y.scale, points().flat_map(|point| [point.y, point.range.0, point.range.1]));
        let paper = Paper { x, y };
        let mut svg = String::new();
        // Writing to a string cannot fail, here and below.
        let _ = write!(
            svg,
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">"#,
            escaped(&self.title)
        );
        paper.draw_grid(&mut svg, &self.x.label, &self.y.label);
        for line in &self.lines {
            paper.draw_line(&mut svg, line);
        }
        svg.push_str("</svg>");
        svg
    }
}

struct Paper {
    x: Axis,
    y: Axis,
}

impl Paper {
    fn left_of(&self, x: f64) -> f64 {
        LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
    }

    fn top_of(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw_grid(&self, svg: &mut String, x_label: &str, y_label: &str) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in &self.y.ticks {
            let top = self.top_of(tick.value);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{top:.1}" y2="{top:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                top + 4.0,
                tick.label
            );
        }
        for tick in &self.x.ticks {
            let left = self.left_of(tick.value);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{left:.1}" x2="{left:.1}" y1="{TOP}" y2="{bottom}"/><text class="tick" x="{left:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                bottom + 18.0,
                tick.label
            );
        }
        let (x_middle, y_middle) = (f64::midpoint(LEFT, right), f64::midpoint(TOP, bottom));
        let _ = write!(
            svg,
            r#"<text class="label" x="{x_middle}" y="{:.1}" text-anchor="middle">{}</text><text class="label" transform="translate(14 {y_middle}) rotate(-90)" text-anchor="middle">{}</text>"#,
            HEIGHT - 10.0,
            escaped(x_label),
            escaped(y_label)
        );
    }

    fn draw_line(&self, svg: &mut String, line: &Line) {
        let class = class_of(&line.contender);
        let dash = if line.dashed { " dashed" } else { "" };
        let path: Vec<String> = line
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", self.left_of(point.x), self.top_of(point.y)))
            .collect();
        let _ = write!(svg, r#"<polyline class="line {class}{dash}" points="{}"/>"#, path.join(" "));
        if !line.dots {
            return;
        }
        for point in &line.points {
            let left = self.left_of(point.x);
            let (low, high) = (self.top_of(point.range.0), self.top_of(point.range.1));
            let _ = write!(
                svg,
                r#"<line class="range {class}" x1="{left:.1}" x2="{left:.1}" y1="{low:.1}" y2="{high:.1}"/><circle class="dot {class}" cx="{left:.1}" cy="{:.1}" r="4"><title>{}: {} at {} ({} to {})</title></circle>"#,
                self.top_of(point.y),
                escaped(&line.contender),
                crate::table::number(point.y),
                grouped(point.x),
                crate::table::number(point.range.0),
                crate::table::number(point.range.1),
            );
        }
    }
}

/// The class that gives a contender the same colour in every plot.
pub fn class_of(contender: &str) -> &'static str {
    match contender {
        "tandem" => "c-tandem",
        "floor" => "c-floor",
        "node-seed" => "c-node",
        "node-seed-sharded" => "c-sharded",
        _ => "c-other",
    }
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_inside_the_paper_and_text_is_escaped() {
        let point = |x: f64, y: f64| Point { x, y, range: (y, y) };
        let plot = Plot {
            title: "a < b".to_owned(),
            x: Side { label: "\"x\"".to_owned(), scale: Scale::Linear },
            y: Side { label: "y".to_owned(), scale: Scale::Log },
            lines: vec![Line {
                contender: "tandem".to_owned(),
                points: vec![point(0.0, 10.0), point(5.0, 1_000.0)],
                dots: true,
                dashed: false,
            }],
        };
        let svg = plot.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        assert!(svg.contains("a &lt; b") && svg.contains("&quot;x&quot;"));
        assert!(svg.contains(r#"points="76.0,260.0 526.0,14.0""#), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
