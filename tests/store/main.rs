//! What the seam to the database promises, asked of every store alike; then what PostgreSQL's faults do to it.
//!
//! One file a subject. A case of the seam is a function of a [`bed::Bed`]; `on_every_store!` makes a test of it for
//! each store. Cases make users of their own, so they may share a database.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::large_futures,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on fails, says so, and has no drain to wait for"
)]

/// Makes `case` a test on each store.
macro_rules! on_every_store {
    ($($case:ident),+ $(,)?) => {
        mod sqlite {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&crate::bed::Bed::sqlite().await).await;
            }
        )+}
        mod postgres {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&crate::bed::Bed::postgres().await).await;
            }
        )+}
    };
}

mod accounts;
mod bed;
mod devices;
mod faults;
mod locks;
mod logins;
mod nodes;
mod pasts;
mod pruning;
mod reads;
mod schema;
mod support;
mod writes;
