//! Registers the users of a run, a few at a time, over REST, and logs them in.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};

use super::http::Connection;
use super::target::Target;

/// Enough to keep a server's hashing busy, few enough not to be a load of its own.
const AT_A_TIME: usize = 4;

/// The tokens of `count` new users, their e-mail addresses made from `tag`.
///
/// # Errors
/// The first refusal, with what to set when a limit caused it.
pub fn register(target: &Target, tag: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<Vec<(usize, String)>> {
        // REST goes to one node: the store belongs to all of them.
        let mut connection = Connection::open(target.nodes[0])?;
        let mut mine = Vec::new();
        loop {
            let user = next.fetch_add(1, Ordering::Relaxed);
            if user >= count {
                return Ok(mine);
            }
            mine.push((user, register_one(&mut connection, tag, user)?));
        }
    };
    let mut numbered = std::thread::scope(|scope| -> anyhow::Result<Vec<_>> {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(count);
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a registration thread panicked"))??);
        }
        Ok(all)
    })?;
    numbered.sort_unstable_by_key(|(user, _)| *user);
    Ok(numbered.into_iter().map(|(_, token)| token).collect())
}

/// Gives every user one session key of about `bytes` bytes, so that a restore has something to carry.
///
/// # Errors
/// The first refusal.
pub fn fill_sessions(target: &Target, tokens: &[String], bytes: usize) -> anyhow::Result<()> {
    let mut connection = Connection::open(target.nodes[0])?;
    let state = format!("{{\"filling\":\"{}\"}}", "x".repeat(bytes));
    for token in tokens {
        let answer = connection.put("/api/session/filling", token, &state)?;
        if answer.status != 200 {
            bail!("a session key answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
    }
    Ok(())
}

/// Logs in a user that [`register`] made.
///
/// # Errors
/// A refusal, or no answer.
pub fn log_in(connection: &mut Connection, tag: &str, user: usize) -> anyhow::Result<()> {
    let answer = connection.post("/api/auth/login", &credentials(tag, user))?;
    ensure!(
        answer.status == 200,
        "login answered {}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(())
}

fn credentials(tag: &str, user: usize) -> String {
    format!(r#"{{"email":"{tag}-{user}@example.test","password":"load test {tag} {user}"}}"#)
}

fn register_one(connection: &mut Connection, tag: &str, user: usize) -> anyhow::Result<String> {
    let answer = connection.post("/api/auth/register", &credentials(tag, user))?;
    match answer.status {
        200 | 201 => {}
        429 => bail!(
            "registration is limited (retry after {} s): start the server with LIMIT_AUTH_PER_ADDRESS=0",
            answer.retry_after.as_deref().unwrap_or("?")
        ),
        status => bail!("registration answered {status}: {}", String::from_utf8_lossy(&answer.body)),
    }
    let answer: serde_json::Value =
        serde_json::from_slice(&answer.body).context("registration did not answer JSON")?;
    let token = answer.get("token").and_then(serde_json::Value::as_str);
    token.map(str::to_owned).context("registration answered no token")
}
