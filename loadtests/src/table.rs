//! Samples as text: for each work a row a figure, for each contender median and range of its rounds.

use std::collections::BTreeMap;

use crate::compare::quiet;
use crate::measure::figure::FIGURES;
use crate::measure::result::Sample;
use crate::measure::spread::Spread;

/// The samples of one work with the same nodes, sockets and rate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub work: String,
    pub nodes: usize,
    pub sockets: usize,
    pub rate: u32,
}

impl Point {
    pub fn of(sample: &Sample) -> Self {
        Self { work: sample.work.clone(), nodes: sample.nodes, sockets: sample.sockets, rate: sample.rate }
    }

    pub fn title(&self) -> String {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let mut title =
            format!("{}: {} node{}, {} sockets", self.work, self.nodes, plural(self.nodes), self.sockets);
        if self.rate > 0 {
            title.push_str(&format!(", {} events/s", self.rate));
        }
        title
    }
}

/// One point's samples.
pub struct Group<'a> {
    pub point: Point,
    pub samples: Vec<&'a Sample>,
}

impl Group<'_> {
    /// In the order in which they were first measured.
    pub fn contenders(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !names.contains(&sample.contender.as_str()) {
                names.push(&sample.contender);
            }
        }
        names.sort_by_key(|name| rank(name));
        names
    }

    pub fn spread(&self, contender: &str, figure: &str) -> Option<Spread> {
        let rounds = self.samples.iter().filter(|sample| sample.contender == contender);
        Spread::of(rounds.filter_map(|sample| sample.figures.get(figure).copied()))
    }

    /// The figures that any sample has, in the order of their definition.
    pub fn figures(&self) -> Vec<&'static str> {
        let has = |name: &str| self.samples.iter().any(|sample| sample.figures.contains_key(name));
        FIGURES.iter().map(|figure| figure.name).filter(|name| has(name)).collect()
    }
}

/// Tandem first, then what it is held against.
fn rank(contender: &str) -> usize {
    ["tandem", "floor", "node-seed"].iter().position(|known| *known == contender).unwrap_or(usize::MAX)
}

/// Whether anything else kept the machine busy while the figures were taken, in words; `None` if not.
pub fn disturbance(samples: &[Sample]) -> Option<String> {
    let others = |sample: &Sample| sample.figures.get("other_cores").copied().unwrap_or(0.0);
    let disturbed: Vec<f64> = samples.iter().map(others).filter(|cores| *cores > quiet::CORES_MAX).collect();
    let most = disturbed.iter().copied().fold(0.0, f64::max);
    (!disturbed.is_empty()).then(|| {
        format!(
            "The machine was not quiet: during {} of {} measurements others kept up to {} cores busy. \
             Latencies suffer first, ratios of processor time last.",
            disturbed.len(),
            samples.len(),
            number(most)
        )
    })
}

/// The samples by point, in the order in which they were measured.
pub fn groups(samples: &[Sample]) -> Vec<Group<'_>> {
    let mut order: Vec<Point> = Vec::new();
    let mut by_point: BTreeMap<Point, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let point = Point::of(sample);
        if !by_point.contains_key(&point) {
            order.push(point.clone());
        }
        by_point.entry(point).or_default().push(sample);
    }
    order
        .into_iter()
        .map(|point| Group { samples: by_point.remove(&point).unwrap_or_default(), point })
        .collect()
}

/// `12.3 (11.9 to 12.8)`, or the value alone when there was one round.
pub fn spread_text(spread: &Spread) -> String {
    if spread.rounds == 1 {
        return number(spread.median);
    }
    format!("{} ({} to {})", number(spread.median), number(spread.least), number(spread.most))
}

/// Three or four digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.995 => format!("{value:.3}"),
        size if size < 9.95 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

pub fn print(samples: &[Sample]) {
    if let Some(disturbance) = disturbance(samples) {
        println!("{disturbance}");
    }
    for group in groups(samples) {
        let contenders = group.contenders();
        println!("\n{}", group.point.title());
        let head = contenders.iter().map(|name| format!("{name:>30}")).collect::<String>();
        println!("  {:<26}{head}", "");
        for figure in group.figures() {
            let cell =
                |name: &&str| group.spread(name, figure).as_ref().map_or_else(|| "-".to_owned(), spread_text);
            let cells = contenders.iter().map(|name| format!("{:>30}", cell(name))).collect::<String>();
            println!("  {figure:<26}{cells}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(work: &str, contender: &str, value: f64) -> Sample {
        let mut sample = Sample::new(work, 1, 200, 1_000);
        sample.contender = contender.to_owned();
        sample.set("ack_p99_us", value);
        sample
    }

    #[test]
    fn rounds_of_a_contender_are_one_cell() {
        let samples = [
            sample("b", "floor", 1.0),
            sample("b", "tandem", 5.0),
            sample("a", "floor", 9.0),
            sample("b", "floor", 3.0),
        ];
        let groups = groups(&samples);
        assert_eq!(groups.iter().map(|group| group.point.work.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(groups[0].contenders(), ["tandem", "floor"]);
        assert_eq!(groups[0].figures(), ["ack_p99_us"]);
        let floor = groups[0].spread("floor", "ack_p99_us").unwrap();
        assert_eq!(spread_text(&floor), "2.00 (1.00 to 3.00)");
        assert!(groups[1].spread("tandem", "ack_p99_us").is_none());
    }

    #[test]
    fn a_disturbed_machine_is_named() {
        let mut quiet = sample("a", "tandem", 1.0);
        quiet.set("other_cores", 0.1);
        let mut loud = sample("a", "floor", 1.0);
        loud.set("other_cores", 1.4);
        assert_eq!(disturbance(std::slice::from_ref(&quiet)), None);
        let words = disturbance(&[quiet, loud]).unwrap();
        assert!(words.contains("1 of 2") && words.contains("1.40 cores"), "{words}");
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let table = [(0.0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (21.04, "21.0"), (5_000.4, "5000")];
        for (value, text) in table {
            assert_eq!(number(value), text);
        }
    }
}
