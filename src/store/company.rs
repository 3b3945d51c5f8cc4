//! Whether a commit waits a moment for company.
//!
//! What a commit costs hardly depends on what it carries, so where many users write, a few milliseconds spare most
//! of it; PostgreSQL has the same idea (`commit_delay`, `commit_siblings`). Where few write nobody waits: company
//! would not come, and a lone writer's next write waits for the ack of this one.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::UserId;

/// So many different users within [`WITHIN`] make it worth while. More than are [`ENOUGH`]: so many of whom
/// each writes again after its ack are never all waiting for company that cannot come.
const USERS_MIN: usize = 12;
const WITHIN: Duration = Duration::from_millis(20);

/// So many commands are company enough: what is left to spare is small.
pub const ENOUGH: usize = 10;

const _: () = assert!(USERS_MIN > ENOUGH);

/// Nobody waits longer. A timer is good to a millisecond.
const WAIT_MAX: Duration = Duration::from_millis(8);

/// Who wrote lately.
#[derive(Default)]
pub struct Company {
    /// At most [`USERS_MIN`], each with its latest command.
    users: Vec<(UserId, Instant)>,
}

impl Company {
    /// A user's command arrives.
    pub fn note(&mut self, user: UserId, now: Instant) {
        if let Some(known) = self.users.iter_mut().find(|(known, _)| *known == user) {
            known.1 = now;
        } else if self.users.len() < USERS_MIN {
            self.users.push((user, now));
        } else if let Some(oldest) = self.users.iter_mut().min_by_key(|(_, at)| *at) {
            *oldest = (user, now);
        }
    }

    /// Until when the `waiting` commands, the first of which came at `since`, wait for more.
    pub fn expected(&self, waiting: usize, since: Instant, now: Instant) -> Option<Instant> {
        let until = since + WAIT_MAX;
        let is_lively = self.users.len() == USERS_MIN
            && self.users.iter().all(|(_, at)| now.saturating_duration_since(*at) < WITHIN);
        (waiting < ENOUGH && now < until && is_lively).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users who write in turn, one each `apart`; the instant of the last.
    fn written(users: usize, times: usize, apart: Duration) -> (Company, Instant) {
        let users: Vec<_> = (0..users).map(|_| UserId::fresh()).collect();
        let (mut company, mut now) = (Company::default(), Instant::now());
        for nth in 0..times {
            now += apart;
            company.note(users[nth % users.len()], now);
        }
        (company, now)
    }

    #[test]
    fn where_many_users_write_a_commit_waits_but_not_long() {
        let (company, now) = written(50, 1_000, Duration::from_millis(1));
        assert_eq!(company.expected(1, now, now), Some(now + WAIT_MAX));
        assert_eq!(company.expected(1, now, now + WAIT_MAX), None);
        assert_eq!(company.expected(ENOUGH, now, now), None);
    }

    #[test]
    fn where_few_users_write_nobody_waits() {
        let (company, now) = written(USERS_MIN - 1, 1_000, Duration::from_micros(100));
        assert_eq!(company.expected(1, now, now), None);
    }

    #[test]
    fn where_many_write_seldom_nobody_waits() {
        let (company, now) = written(50, 1_000, Duration::from_millis(5));
        assert_eq!(company.expected(1, now, now), None);
        let (company, now) = written(50, 1_000, Duration::from_millis(1));
        let later = now + WITHIN;
        assert_eq!(company.expected(1, later, later), None);
    }
}
