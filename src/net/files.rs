//! How many files the process may open: every connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside the connections that are served: the store's and the backplane's connections, those that are answered
/// beyond the cap, listeners, logs.
const RESERVE: u64 = 512;

/// Raises the limit of open files as far as the system lets this process, which often starts it with 1,024 though many
/// more are allowed. Says so where that is too few for `connections`.
pub fn allow_for(connections: usize) -> Option<String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    let raised = Rlimit { current: maximum, maximum };
    let allowed = if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    let needed = connections as u64 + RESERVE;
    let allowed = allowed.filter(|allowed| *allowed < needed)?;
    Some(format!(
        "this process may open {allowed} files, and LIMIT_CONNECTIONS={connections} needs {needed}: raise its hard limit \
         (ulimit -Hn, LimitNOFILE) or lower LIMIT_CONNECTIONS"
    ))
}
