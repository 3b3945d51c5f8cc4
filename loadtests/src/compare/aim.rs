//! The figures that the project set itself, and where each stands: medians of ratios within one run, because
//! absolute figures belong to a machine and a minute.

use crate::measure::result::Sample;
use crate::measure::spread::Spread;
use crate::table::{Group, groups, number};

/// What is asked of Tandem's figure.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// At most so many times the peer's.
    TimesAtMost(&'static str, f64),
    TimesAtLeast(&'static str, f64),
    /// At most so much above the peer's.
    AboveAtMost(&'static str, f64),
    /// No point's median more than so many times that of a smaller point: falling with the load is no growth.
    Flat(f64),
}

pub struct Aim {
    pub work: &'static str,
    pub figure: &'static str,
    pub bound: Bound,
}

const fn aim(work: &'static str, figure: &'static str, bound: Bound) -> Aim {
    Aim { work, figure, bound }
}

pub const AIMS: &[Aim] = &[
    aim("relay", "cpu_us_per_event", Bound::TimesAtMost("floor", 1.5)),
    aim("cluster-relay", "cpu_us_per_event", Bound::TimesAtMost("floor", 1.5)),
    aim("cluster-relay", "cpu_us_per_event", Bound::TimesAtMost("node-seed", 0.55)),
    aim("latency", "delivery_p50_us", Bound::AboveAtMost("floor", 500.0)),
    aim("latency", "delivery_p99_us", Bound::AboveAtMost("floor", 500.0)),
    aim("cluster-latency", "delivery_p99_us", Bound::AboveAtMost("floor", 1_000.0)),
    aim("updates", "ack_p99_us", Bound::AtMost(25_000.0)),
    aim("updates", "cpu_us_per_event", Bound::TimesAtMost("node-seed", 1.0)),
    aim("peak", "max_per_second", Bound::AtLeast(5_000.0)),
    aim("idle", "rss_kib_per_socket", Bound::AtMost(22.0)),
    aim("idle", "rss_kib", Bound::TimesAtMost("node-seed", 1.0)),
    aim("idle", "idle_core_percent", Bound::AtMost(2.0)),
    aim("connect", "connects_per_second", Bound::TimesAtLeast("node-seed", 3.0)),
    aim("growth-sockets", "cpu_us_per_event", Bound::Flat(1.15)),
    aim("growth-nodes", "cpu_us_per_event", Bound::Flat(1.15)),
    aim("growth-nodes-together", "cpu_us_per_event", Bound::Flat(1.15)),
];

/// Where one aim stands.
#[derive(Debug)]
pub struct Standing {
    pub asked: String,
    /// Of the ratio, the difference, or the figure itself, as the bound has it.
    pub reached: Spread,
    pub met: bool,
}

/// Every aim that the samples can tell about.
pub fn judge(samples: &[Sample]) -> Vec<Standing> {
    let groups = groups(samples);
    AIMS.iter()
        .flat_map(|aim| {
            let of_work: Vec<&Group<'_>> =
                groups.iter().filter(|group| group.point.work == aim.work).collect();
            match aim.bound {
                Bound::Flat(_) => vec![aim.judge_growth(&of_work)],
                _ => of_work.iter().map(|group| aim.judge_rounds(group)).collect(),
            }
        })
        .flatten()
        .collect()
}

impl Aim {
    /// One value a round, the contenders of one round against each other.
    fn judge_rounds(&self, group: &Group<'_>) -> Option<Standing> {
        let figure = |contender: &str, round: usize| {
            let sample =
                group.samples.iter().find(|sample| sample.contender == contender && sample.round == round)?;
            sample.figures.get(self.figure).copied()
        };
        let rounds = group.samples.iter().map(|sample| sample.round).max()?;
        let value_of = |round: usize| {
            let own = figure("tandem", round)?;
            Some(match self.bound {
                Bound::TimesAtMost(peer, _) | Bound::TimesAtLeast(peer, _) => own / figure(peer, round)?,
                Bound::AboveAtMost(peer, _) => own - figure(peer, round)?,
                Bound::AtMost(_) | Bound::AtLeast(_) | Bound::Flat(_) => own,
            })
        };
        let reached = Spread::of((1..=rounds).filter_map(value_of))?;
        Some(Standing { asked: self.asked(), met: self.bound.is_met_by(reached.median), reached })
    }

    /// The steepest ratio of a point's median to that of a point with fewer nodes or sockets.
    fn judge_growth(&self, groups: &[&Group<'_>]) -> Option<Standing> {
        let mut groups = groups.to_vec();
        groups.sort_by_key(|group| (group.point.nodes, group.point.sockets));
        let medians = groups.iter().filter_map(|group| Some(group.spread("tandem", self.figure)?.median));
        let growths = medians.scan(f64::INFINITY, |least, median| {
            *least = least.min(median);
            Some(median / *least)
        });
        // The first point has nothing to grow from.
        let reached = Spread::of([growths.skip(1).reduce(f64::max)?])?;
        Some(Standing { asked: self.asked(), met: self.bound.is_met_by(reached.median), reached })
    }

    fn asked(&self) -> String {
        let (work, figure) = (self.work, self.figure);
        match self.bound {
            Bound::AtMost(most) => format!("{work}: {figure} at most {}", number(most)),
            Bound::AtLeast(least) => format!("{work}: {figure} at least {}", number(least)),
            Bound::TimesAtMost(peer, times) => {
                format!("{work}: {figure} at most {} times {peer}'s", number(times))
            }
            Bound::TimesAtLeast(peer, times) => {
                format!("{work}: {figure} at least {} times {peer}'s", number(times))
            }
            Bound::AboveAtMost(peer, above) => {
                format!("{work}: {figure} at most {} above {peer}'s", number(above))
            }
            Bound::Flat(times) => {
                format!("{work}: {figure} grows at most {} times over all points", number(times))
            }
        }
    }
}

impl Bound {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most)
            | Self::TimesAtMost(_, most)
            | Self::AboveAtMost(_, most)
            | Self::Flat(most) => value <= most,
            Self::AtLeast(least) | Self::TimesAtLeast(_, least) => value >= least,
        }
    }
}

pub fn print(standings: &[Standing]) {
    if !standings.is_empty() {
        println!("\naims");
    }
    for standing in standings {
        let verdict = if standing.met { "met   " } else { "MISSED" };
        println!("  {verdict}  {}: {}", standing.asked, crate::table::spread_text(&standing.reached));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::figure;

    fn sample(work: &str, contender: &str, round: usize, sockets: usize, cpu: f64) -> Sample {
        let mut sample = Sample { round, ..Sample::new(work, 1, sockets, 1_000) };
        sample.contender = contender.to_owned();
        sample.set("cpu_us_per_event", cpu);
        sample
    }

    #[test]
    fn aims_name_figures_and_works_that_exist() {
        use clap::ValueEnum;
        let works: Vec<&str> =
            crate::compare::work::Work::value_variants().iter().map(|work| work.name()).collect();
        for aim in AIMS {
            assert!(figure::meaning(aim.figure).is_some(), "{}", aim.figure);
            assert!(works.contains(&aim.work), "{}", aim.work);
        }
    }

    #[test]
    fn the_median_of_ratios_decides_not_the_ratio_of_medians() {
        let samples = [
            sample("relay", "tandem", 1, 200, 30.0),
            sample("relay", "floor", 1, 200, 10.0),
            sample("relay", "floor", 2, 200, 30.0),
            sample("relay", "tandem", 2, 200, 30.0),
            sample("relay", "tandem", 3, 200, 14.0),
            sample("relay", "floor", 3, 200, 10.0),
        ];
        let standings = judge(&samples);
        assert_eq!(standings.len(), 1);
        assert_eq!(standings[0].reached.median, 1.4);
        assert!(standings[0].met);
    }

    #[test]
    fn growth_is_judged_over_all_points() {
        let flat = [
            sample("growth-sockets", "tandem", 1, 200, 20.0),
            sample("growth-sockets", "tandem", 1, 8_000, 22.0),
        ];
        assert!(judge(&flat)[0].met);
        let steep = [
            sample("growth-sockets", "tandem", 1, 200, 20.0),
            sample("growth-sockets", "tandem", 1, 8_000, 24.0),
        ];
        assert!(!judge(&steep)[0].met);
        let falling = [
            sample("growth-sockets", "tandem", 1, 200, 24.0),
            sample("growth-sockets", "tandem", 1, 1_000, 18.0),
            sample("growth-sockets", "tandem", 1, 8_000, 20.0),
        ];
        assert!(judge(&falling)[0].met);
        assert!(judge(&flat[..1]).is_empty());
    }
}
