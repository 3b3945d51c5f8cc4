//! What the process itself takes, as the system tells it. Elsewhere than on
//! Linux nothing is told.

use super::metrics::Metrics;

/// Clock ticks a second in `/proc`; the same on every Linux (proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of a page of memory where the system does not say otherwise.
const PAGE_BYTES: u64 = 4_096;

/// Brings the process's own metrics up to date.
pub fn measure(metrics: &Metrics) {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    if let Some(pages) =
        read("/proc/self/statm").split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok())
    {
        metrics.process_memory.set((pages * PAGE_BYTES) as f64);
    }
    if let Some(ticks) = cpu_ticks(&read("/proc/self/stat")) {
        metrics.process_cpu.absolute(ticks / TICKS_PER_SECOND);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        metrics.process_files.set(files.count() as f64);
    }
    if let Some(most) = files_max(&read("/proc/self/limits")) {
        metrics.process_files_max.set(most as f64);
    }
}

/// User and system time: the 14th and 15th field, counted behind the name, which
/// may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read_by_their_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 1 1 1";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("nonsense"), None);
        assert_eq!(files_max("Limit Soft\nMax open files            1024  4096 files\n"), Some(1_024));
        assert_eq!(files_max(""), None);
    }
}
