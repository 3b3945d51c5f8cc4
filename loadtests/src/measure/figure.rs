//! Every figure a run may report: its name in the JSON result (units last), and what it means. The README's
//! table and the report's hover texts come from here.

/// One kind of figure.
pub struct Figure {
    pub name: &'static str,
    pub meaning: &'static str,
}

const fn figure(name: &'static str, meaning: &'static str) -> Figure {
    Figure { name, meaning }
}

pub const FIGURES: &[Figure] = &[
    figure("offered_per_second", "events the schedule asked for"),
    figure(
        "achieved_per_second",
        "events answered in the measured time: acknowledged or, where no ack is asked, relayed to all",
    ),
    figure("events", "events sent in the measured time"),
    figure(
        "cpu_us_per_event",
        "processor time of nodes and Redis for one event, all its deliveries included",
    ),
    figure("node_cpu_us_per_event", "the nodes' part of it"),
    figure("redis_cpu_us_per_event", "Redis' part of it"),
    figure("delivery_p50_us", "from the scheduled send to the arrival at another device, median"),
    figure("delivery_p90_us", "the same, 90 %"),
    figure("delivery_p99_us", "the same, 99 %"),
    figure("delivery_p999_us", "the same, 99.9 %"),
    figure("delivery_max_us", "the same, the slowest"),
    figure("ack_p50_us", "from the scheduled send to the acknowledgement, median"),
    figure("ack_p90_us", "the same, 90 %"),
    figure("ack_p99_us", "the same, 99 %"),
    figure("ack_p999_us", "the same, 99.9 %"),
    figure("ack_max_us", "the same, the slowest"),
    figure(
        "send_lag_p99_us",
        "how late the generator itself sent, 99 %: it is inside the latencies, and large when the machine is full",
    ),
    figure("deliveries_lost", "deliveries that never came, of all sent in the run"),
    figure("deliveries_extra", "deliveries that came twice"),
    figure("acks_lost", "acknowledgements that never came"),
    figure("refused", "error events and refusing acks"),
    figure("sockets_lost", "connections that ended by themselves"),
    figure(
        "max_per_second",
        "the highest rate held with ack p99 within the bound and every event acknowledged",
    ),
    figure("sockets", "devices connected"),
    figure("connects_per_second", "devices connected, from the first dial to the last session-restored"),
    figure("cpu_us_per_connect", "processor time of nodes and Redis for one connection"),
    figure("connect_p50_us", "from the dial to session-restored, median"),
    figure("connect_p90_us", "the same, 90 %"),
    figure("connect_p99_us", "the same, 99 %"),
    figure("connect_p999_us", "the same, 99.9 %"),
    figure("connect_max_us", "the same, the slowest"),
    figure("connect_failures", "attempts that failed and were made again"),
    figure("rss_kib", "resident memory of the nodes with all sockets connected"),
    figure("pss_kib", "the same with shared pages counted by their share"),
    figure("rss_kib_per_socket", "growth of resident memory while the sockets connected, by their number"),
    figure("pss_kib_per_socket", "the same of proportional memory"),
    figure("rss_kib_before", "resident memory of the nodes before the first socket"),
    figure(
        "idle_core_percent",
        "processor time of the nodes while nothing is sent but pings, in percent of one core",
    ),
    figure("back_p50_us", "from the cut to session-restored, the client's own delay included, median"),
    figure("back_p90_us", "the same, 90 %"),
    figure("back_p99_us", "the same, 99 %"),
    figure("back_p999_us", "the same, 99.9 %"),
    figure("back_max_us", "the same, the slowest: all are back"),
    figure("redis_in_bytes_per_event", "bytes Redis received for one event"),
    figure("redis_out_bytes_per_event", "bytes Redis sent for one event"),
    figure("redis_commands_per_event", "commands Redis ran for one event"),
    figure("node_cores", "cores the nodes kept busy"),
    figure("redis_cores", "cores Redis kept busy"),
    figure("generator_cores", "cores the generator kept busy"),
    figure(
        "other_cores",
        "cores that everything else on the machine kept busy: the lower, the better the figures",
    ),
];

pub fn meaning(name: &str) -> Option<&'static str> {
    FIGURES.iter().find(|figure| figure.name == name).map(|figure| figure.meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_explained_in_the_readme() {
        let readme = include_str!("../../README.md");
        for (index, figure) in FIGURES.iter().enumerate() {
            assert!(FIGURES[..index].iter().all(|other| other.name != figure.name), "{} twice", figure.name);
            let family = figure.name.split("_p50").next().unwrap_or(figure.name);
            let is_tail =
                ["_p90_us", "_p99_us", "_p999_us", "_max_us"].iter().any(|tail| figure.name.ends_with(tail));
            assert!(is_tail || readme.contains(family), "{} is not in README.md", figure.name);
        }
    }
}
