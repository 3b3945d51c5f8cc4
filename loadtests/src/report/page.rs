//! The page: the machine, where every aim stands, then each work with its plots and all its figures.

use std::fmt::Write;

use super::charts;
use super::plot::{Plot, class_of, escaped};
use crate::compare::aim::{self, Standing};
use crate::measure::figure;
use crate::measure::result::RunResult;
use crate::table::{self, Group, groups, number, spread_text};

const STYLE: &str = include_str!("page.css");

pub fn page(result: &RunResult) -> String {
    let mut html = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Tandem load report</title><style>{STYLE}</style></head><body><main><h1>What it costs</h1>"
    );
    let machine = &result.machine;
    let _ = write!(
        html,
        "<p>{}, {} cores, {} MiB, Linux {}; begun {}</p><p><code>{}</code></p>\
         <p>Latencies count from the instant an event was due, so a server that stalls cannot hide it. Cells are the median \
         of the rounds, and their range.</p>",
        escaped(&machine.processor),
        machine.cores,
        machine.memory_mib,
        escaped(&machine.kernel),
        escaped(&result.started_at),
        escaped(&result.command)
    );
    if let Some(disturbance) = table::disturbance(&result.samples) {
        let _ = write!(html, "<p class=\"missed\">{disturbance}</p>");
    }
    for failure in &result.failures {
        let _ = write!(html, "<p class=\"missed\">Not measured: {}</p>", escaped(failure));
    }
    write_aims(&mut html, &aim::judge(&result.samples));
    let groups = groups(&result.samples);
    for work in works(&groups) {
        let of_work: Vec<&Group<'_>> = groups.iter().filter(|group| group.point.work == work).collect();
        write_work(&mut html, work, &of_work);
    }
    html.push_str("</main></body></html>\n");
    html
}

fn works<'a>(groups: &'a [Group<'_>]) -> Vec<&'a str> {
    let mut works: Vec<&str> = groups.iter().map(|group| group.point.work.as_str()).collect();
    works.dedup();
    works
}

fn write_aims(html: &mut String, standings: &[Standing]) {
    if standings.is_empty() {
        return;
    }
    html.push_str("<h2>Aims</h2><div class=\"wide\"><table><tr><th>asked<th>reached<th>");
    for standing in standings {
        let (class, verdict) = if standing.met { ("met", "✓ met") } else { ("missed", "✗ missed") };
        let reached = spread_text(&standing.reached);
        let _ =
            write!(html, "<tr><td>{}<td>{reached}<td class=\"{class}\">{verdict}", escaped(&standing.asked));
    }
    html.push_str("</table></div>");
}

fn write_work(html: &mut String, work: &str, groups: &[&Group<'_>]) {
    let _ = write!(html, "<h2>{}</h2>", escaped(work));
    let mut plots = charts::growths(work, groups);
    plots.extend(groups.iter().filter_map(|group| charts::search(group)));
    // The distributions of a whole sweep would be pages of plots; its growth tells the same.
    if groups.len() <= 2 {
        plots.extend(groups.iter().flat_map(|group| charts::distributions(group)));
    }
    html.push_str("<div class=\"plots\">");
    plots.iter().for_each(|plot| write_plot(html, plot));
    html.push_str("</div>");
    groups.iter().for_each(|group| write_table(html, group));
}

fn write_plot(html: &mut String, plot: &Plot) {
    let mut contenders: Vec<&str> = plot.lines.iter().map(|line| line.contender.as_str()).collect();
    contenders.dedup();
    contenders.sort_unstable();
    contenders.dedup();
    let _ = write!(
        html,
        "<figure><figcaption>{}</figcaption>{}<div class=\"legend\">",
        escaped(&plot.title),
        plot.svg()
    );
    for contender in contenders {
        let _ = write!(html, "<span><i class=\"{}\"></i>{}</span>", class_of(contender), escaped(contender));
    }
    html.push_str("</div></figure>");
}

fn write_table(html: &mut String, group: &Group<'_>) {
    let contenders = group.contenders();
    let _ =
        write!(html, "<h3>{}</h3><div class=\"wide\"><table><tr><th>figure", escaped(&group.point.title()));
    for contender in &contenders {
        let _ = write!(html, "<th>{}", escaped(contender));
    }
    for name in group.figures() {
        let meaning = figure::meaning(name).unwrap_or_default();
        let _ = write!(html, "<tr><td><abbr title=\"{}\">{name}</abbr>", escaped(meaning));
        for contender in &contenders {
            match group.spread(contender, name) {
                None => html.push_str("<td>"),
                Some(spread) if spread.rounds == 1 => _ = write!(html, "<td>{}", number(spread.median)),
                Some(spread) => {
                    let (median, least, most) =
                        (number(spread.median), number(spread.least), number(spread.most));
                    let _ = write!(html, "<td>{median} <small>{least} to {most}</small>");
                }
            }
        }
    }
    html.push_str("</table></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::result::Sample;

    #[test]
    fn a_page_needs_nothing_else_and_escapes_what_it_is_given() {
        let mut result = RunResult::begin();
        result.command = "<script>".to_owned();
        for (contender, cpu) in [("tandem", 30.0), ("floor", 20.0)] {
            let mut sample = Sample::new("relay", 1, 200, 5_000);
            sample.contender = contender.to_owned();
            sample.set("cpu_us_per_event", cpu);
            result.samples.push(sample);
        }
        let html = page(&result);
        assert!(html.contains("✓ met") && html.contains("&lt;script&gt;"));
        for foreign in ["<script", "<link", "src=", "url("] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }
}
