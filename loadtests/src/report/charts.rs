//! Which plots a result can tell: latency distributions of every point, and growth with whatever differs between
//! the points of one work (rate, sockets, nodes).

use std::collections::BTreeMap;

use super::plot::{Line, Plot, Point, Side};
use super::scale::Scale;
use crate::measure::result::Sample;
use crate::table::Group;

/// What was timed, in the words of a plot's title.
const TIMED: [(&str, &str); 4] = [
    ("delivery", "Delivery latency"),
    ("ack", "Acknowledgement latency"),
    ("connect", "Time to connect"),
    ("back", "Time until back"),
];

/// The latency distributions of one point, every round a line of its own.
pub fn distributions(group: &Group<'_>) -> Vec<Plot> {
    TIMED
        .iter()
        .filter_map(|(timed, title)| {
            let lines: Vec<Line> =
                group.samples.iter().filter_map(|sample| distribution_line(sample, timed)).collect();
            (!lines.is_empty()).then(|| Plot {
                title: format!("{title} by share of events: {}", group.point.title()),
                x: Side { label: "share of events".to_owned(), scale: Scale::Nines },
                y: Side { label: "at most this many ms".to_owned(), scale: Scale::Log },
                lines,
            })
        })
        .collect()
}

fn distribution_line(sample: &Sample, timed: &str) -> Option<Line> {
    let quantiles = sample.distributions.get(timed)?;
    let point = |share: f64, us: u64| {
        let ms = us as f64 / 1_000.0;
        Point { x: share, y: ms, range: (ms, ms) }
    };
    let points = quantiles.iter().map(|quantile| point(quantile.share, quantile.us)).collect();
    Some(Line { contender: sample.contender.clone(), points, dots: false, dashed: false })
}

/// How a figure grows over the points of one work.
struct Growth {
    title: &'static str,
    x: X,
    /// The second, if there is one, is drawn dashed.
    figures: &'static [&'static str],
    /// From the figure's unit to the label's.
    divide_by: f64,
    y_label: &'static str,
    y_scale: Scale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum X {
    Rate,
    Sockets,
    Nodes,
}

const GROWTHS: &[Growth] = &[
    Growth {
        title: "Throughput against latency (solid p50, dashed p99)",
        x: X::Rate,
        figures: &["delivery_p50_us", "delivery_p99_us"],
        divide_by: 1_000.0,
        y_label: "delivery latency, ms",
        y_scale: Scale::Log,
    },
    Growth {
        title: "Throughput against ack latency (solid p50, dashed p99)",
        x: X::Rate,
        figures: &["ack_p50_us", "ack_p99_us"],
        divide_by: 1_000.0,
        y_label: "ack latency, ms",
        y_scale: Scale::Log,
    },
    Growth {
        title: "Processor time against throughput",
        x: X::Rate,
        figures: &["cpu_us_per_event"],
        divide_by: 1.0,
        y_label: "processor time an event, µs",
        y_scale: Scale::Linear,
    },
    Growth {
        title: "Memory against sockets",
        x: X::Sockets,
        figures: &["rss_kib"],
        divide_by: 1_024.0,
        y_label: "resident memory, MiB",
        y_scale: Scale::Linear,
    },
    Growth {
        title: "Cost against sockets",
        x: X::Sockets,
        figures: &["cpu_us_per_event"],
        divide_by: 1.0,
        y_label: "processor time an event, µs",
        y_scale: Scale::Linear,
    },
    Growth {
        title: "Cost against nodes (nodes and Redis)",
        x: X::Nodes,
        figures: &["cpu_us_per_event"],
        divide_by: 1.0,
        y_label: "processor time an event, µs",
        y_scale: Scale::Linear,
    },
    Growth {
        title: "Redis traffic against nodes",
        x: X::Nodes,
        figures: &["redis_out_bytes_per_event"],
        divide_by: 1.0,
        y_label: "bytes out of Redis an event",
        y_scale: Scale::Linear,
    },
];

/// The growth plots of one work: those whose x differs between its points. Where nodes differ, sockets and rate
/// grow with them, and only nodes are the subject.
pub fn growths(work: &str, groups: &[&Group<'_>]) -> Vec<Plot> {
    let subject = [X::Nodes, X::Sockets, X::Rate].into_iter().find(|x| {
        let first = groups.first().map(|group| x.of(group));
        groups.iter().any(|group| Some(x.of(group)) != first)
    });
    let Some(subject) = subject else { return Vec::new() };
    GROWTHS
        .iter()
        .filter(|growth| growth.x == subject)
        .filter_map(|growth| growth.plot(work, groups))
        .collect()
}

impl Growth {
    fn plot(&self, work: &str, groups: &[&Group<'_>]) -> Option<Plot> {
        let mut contenders: Vec<&str> = Vec::new();
        for name in groups.iter().flat_map(|group| group.contenders()) {
            if !contenders.contains(&name) {
                contenders.push(name);
            }
        }
        let mut lines = Vec::new();
        for contender in contenders {
            for (nth, figure) in self.figures.iter().enumerate() {
                let mut points: Vec<Point> =
                    groups.iter().filter_map(|group| self.point(group, contender, figure)).collect();
                points.sort_by(|one, other| one.x.total_cmp(&other.x));
                if points.len() > 1 {
                    lines.push(Line { contender: contender.to_owned(), points, dots: true, dashed: nth > 0 });
                }
            }
        }
        (!lines.is_empty()).then(|| Plot {
            title: format!("{}: {work}", self.title),
            x: Side { label: self.x.label().to_owned(), scale: Scale::Linear },
            y: Side { label: self.y_label.to_owned(), scale: self.y_scale },
            lines,
        })
    }

    fn point(&self, group: &Group<'_>, contender: &str, figure: &str) -> Option<Point> {
        let spread = group.spread(contender, figure)?;
        let scaled = |value: f64| value / self.divide_by;
        Some(Point {
            x: self.x.of(group),
            y: scaled(spread.median),
            range: (scaled(spread.least), scaled(spread.most)),
        })
    }
}

impl X {
    fn of(self, group: &Group<'_>) -> f64 {
        match self {
            Self::Rate => f64::from(group.point.rate),
            Self::Sockets => group.point.sockets as f64,
            Self::Nodes => group.point.nodes as f64,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Rate => "events a second, offered",
            Self::Sockets => "sockets",
            Self::Nodes => "nodes",
        }
    }
}

/// Throughput against latency from the rates that a search tried, of each rate the best try.
pub fn search(group: &Group<'_>) -> Option<Plot> {
    let mut lines = Vec::new();
    for sample in &group.samples {
        let mut best: BTreeMap<u32, u64> = BTreeMap::new();
        for tried in sample.tried.iter().filter(|tried| tried.ack_p99_us > 0) {
            let p99 = best.entry(tried.events_per_second).or_insert(u64::MAX);
            *p99 = tried.ack_p99_us.min(*p99);
        }
        let point = |(rate, us): (u32, u64)| {
            let ms = us as f64 / 1_000.0;
            Point { x: f64::from(rate), y: ms, range: (ms, ms) }
        };
        let points: Vec<Point> = best.into_iter().map(point).collect();
        if points.len() > 1 {
            lines.push(Line { contender: sample.contender.clone(), points, dots: true, dashed: false });
        }
    }
    (!lines.is_empty()).then(|| Plot {
        title: format!("Throughput against ack latency, as the search tried it: {}", group.point.title()),
        x: Side { label: "updates a second, offered".to_owned(), scale: Scale::Linear },
        y: Side { label: "ack latency p99, ms".to_owned(), scale: Scale::Log },
        lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::groups;

    fn sample(nodes: usize, sockets: usize, rate: u32) -> Sample {
        let mut sample = Sample::new("relay", nodes, sockets, rate);
        sample.contender = "tandem".to_owned();
        sample.set("cpu_us_per_event", 20.0);
        sample.set("rss_kib", 2_048.0);
        sample
    }

    fn titles(samples: &[Sample]) -> Vec<String> {
        let groups = groups(samples);
        growths("relay", &groups.iter().collect::<Vec<_>>()).into_iter().map(|plot| plot.title).collect()
    }

    #[test]
    fn what_differs_is_the_subject() {
        assert!(titles(&[sample(1, 200, 500)]).is_empty());
        assert_eq!(
            titles(&[sample(1, 200, 500), sample(1, 200, 900)]),
            ["Processor time against throughput: relay"]
        );
        let memory = ["Memory against sockets: relay", "Cost against sockets: relay"];
        assert_eq!(titles(&[sample(1, 200, 0), sample(1, 400, 0)]), memory);
        let nodes = ["Cost against nodes (nodes and Redis): relay"];
        assert_eq!(titles(&[sample(1, 200, 300), sample(2, 400, 600)]), nodes);
    }

    #[test]
    fn a_distribution_is_drawn_for_each_timed_thing() {
        let mut sample = sample(1, 200, 500);
        let mut latencies = crate::measure::latency::Latencies::new();
        latencies.record(std::time::Duration::from_millis(1));
        sample.set_latencies("ack", &latencies);
        let samples = [sample];
        let plots = distributions(&groups(&samples)[0]);
        assert_eq!(plots.len(), 1);
        assert!(plots[0].title.starts_with("Acknowledgement latency"));
    }
}
