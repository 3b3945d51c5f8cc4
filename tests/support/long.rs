//! Whether this run is the long one (`./check --long`): the full figures of docs/GUARANTEES.md, else shorter ones.

/// `TANDEM_LONG` is set, to anything but nothing.
pub fn is_long() -> bool {
    std::env::var_os("TANDEM_LONG").is_some_and(|value| !value.is_empty())
}

/// The figure of this run.
pub fn short_or_long<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}
