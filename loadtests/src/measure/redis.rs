//! Redis' own counters, read with INFO: traffic and commands, for the cost of a cluster.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Totals since Redis started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub input_bytes: u64,
    pub output_bytes: u64,
    pub commands: u64,
}

/// Asks once, over a connection of its own.
pub fn counters(address: SocketAddr) -> anyhow::Result<Counters> {
    let mut stream =
        TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("no Redis at {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"*2\r\n$4\r\nINFO\r\n$5\r\nstats\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    let length: usize = head
        .trim_end()
        .strip_prefix('$')
        .and_then(|length| length.parse().ok())
        .with_context(|| format!("Redis answered {:?} to INFO", head.trim_end()))?;
    ensure!(length < 1 << 20, "INFO of {length} bytes");
    let mut info = vec![0; length];
    reader.read_exact(&mut info)?;
    parse(&String::from_utf8_lossy(&info)).context("INFO lacks a counter")
}

fn parse(info: &str) -> Option<Counters> {
    let counter = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().parse().ok())
    };
    Some(Counters {
        input_bytes: counter("total_net_input_bytes")?,
        output_bytes: counter("total_net_output_bytes")?,
        commands: counter("total_commands_processed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_info() {
        let info = "# Stats\r\ntotal_commands_processed:9\r\ntotal_net_input_bytes:70\r\ntotal_net_output_bytes:80\r\n\
            total_net_repl_input_bytes:1\r\n";
        assert_eq!(parse(info), Some(Counters { input_bytes: 70, output_bytes: 80, commands: 9 }));
        assert_eq!(parse("# Stats\r\n"), None);
    }
}
