//! What an operator does with records as a whole: take one user's out, bring the
//! replaced server's in. On the database itself, whether or not nodes are running.

pub mod export;
pub mod import;
