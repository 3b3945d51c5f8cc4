//! Processor time and memory of processes, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

/// `USER_HZ`: fixed at 100 for everything Linux shows to user space on the platforms it has.
const TICK: Duration = Duration::from_millis(10);

/// Resident memory of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss_kib: u64,
    /// Shared pages counted by their share; the honest sum over several processes.
    pub pss_kib: u64,
}

/// User and system time of all threads, the finished ones too; good to 10 ms.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("cannot read /proc/{pid}/stat"))?;
    Ok(TICK * ticks)
}

/// `utime` + `stime`, the 14th and 15th field. The second field, the command, may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u32> {
    let (_, after_command) = stat.rsplit_once(')')?;
    let mut fields = after_command.split_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("cannot read the memory of process {pid}"))?;
    let memory = Memory {
        rss_kib: kib_field(&rollup, "Rss").context("no Rss in smaps_rollup")?,
        pss_kib: kib_field(&rollup, "Pss").context("no Pss in smaps_rollup")?,
    };
    ensure!(memory.rss_kib > 0, "process {pid} has ended");
    Ok(memory)
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
}

/// The process that listens on a loopback TCP port, as far as this user may look.
pub fn listening_on(port: u16) -> Option<u32> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| holds_any(*pid, &inodes))
}

/// The inodes of sockets that listen (state 0A) on `port` in a `/proc/net/tcp` table.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 9 && fields[1].ends_with(&suffix) && fields[3] == "0A")
        .map(|fields| fields[9].to_owned())
        .collect()
}

fn holds_any(pid: u32, links: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|link| links.iter().any(|wanted| link.as_os_str() == wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_command() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 5 0 0 0 120 34 1 2 20 0 9 0 100 1 2";
        assert_eq!(cpu_ticks(stat), Some(154));
        assert_eq!(cpu_ticks("77 (a) S 1"), None);
    }

    #[test]
    fn memory_fields_are_not_mistaken_for_their_namesakes() {
        let rollup = "55-7f ---p 00:00 0 [rollup]\nRss:  2048 kB\nPss:  1024 kB\nPss_Dirty:  7 kB\n";
        assert_eq!(kib_field(rollup, "Rss"), Some(2048));
        assert_eq!(kib_field(rollup, "Pss"), Some(1024));
        assert_eq!(kib_field(rollup, "Swap"), None);
    }

    #[test]
    fn listeners_are_told_from_connections() {
        let table = "  sl  local_address rem_address   st ...\n\
            0: 0100007F:0BB9 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 1 x\n\
            1: 0100007F:0BB9 0100007F:AAAA 01 00000000:00000000 00:00000000 00000000 0 0 4343 1 x\n";
        assert_eq!(listening_inodes(table, 3001), ["4242"]);
        assert!(listening_inodes(table, 3002).is_empty());
    }

    #[test]
    fn this_process_has_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_ok());
        assert!(memory(pid).unwrap().rss_kib > 0);
    }
}
