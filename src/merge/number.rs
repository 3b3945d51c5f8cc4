//! JSON numbers as their text: compared exactly, whatever their size, and
//! added exactly while they are integers. Nothing here rounds a number that
//! is only moved, compared or kept.

use std::cmp::Ordering;

/// Up to here a double is exactly the number that was written.
const EXACT_MAX: f64 = 9_007_199_254_740_991.0;

/// The whole number from 0 that `json`, which is known to be JSON, is; also one
/// written as `3.0` or `3e0`, which is what some encoders make of it.
pub fn whole(json: &str) -> Option<u64> {
    let json = json.trim();
    if !json.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return None;
    }
    let written_otherwise = || {
        let number: f64 = json.parse().ok()?;
        let is_exact = number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number);
        is_exact.then_some(number as u64)
    };
    json.parse().ok().or_else(written_otherwise)
}

/// Whether two numbers are the same value: `1`, `1.0` and `10e-1` are. What it
/// cost is added to `steps` (see `Json::equals`).
pub fn same(a: &str, b: &str, steps: &mut usize) -> bool {
    *steps += (a.len() + b.len()) / 32;
    if a == b || is_canonical(a) && is_canonical(b) {
        return a == b;
    }
    *steps += 2;
    compare(a, b) == Some(Ordering::Equal)
}

/// The exact order of two numbers. None when an exponent does not fit 64 bits,
/// where no order can be had in reasonable time.
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    Some(Decimal::read(a)?.cmp(&Decimal::read(b)?))
}

/// `a + b`. Two integers (no point, no exponent) are added exactly within
/// 128 bits; anything else as IEEE doubles, written in their shortest form.
/// None when the result has no such value: overflow or not finite.
pub fn sum(a: &str, b: &str) -> Option<String> {
    if is_integer(a) && is_integer(b) {
        let total = a.parse::<i128>().ok()?.checked_add(b.parse().ok()?)?;
        return Some(total.to_string());
    }
    let total = a.parse::<f64>().ok()? + b.parse::<f64>().ok()?;
    total.is_finite().then(|| shortest(total))
}

/// The fewest digits that read back as `value`, as JavaScript would: whole
/// values without a point, and an exponent only where the digits would be many.
fn shortest(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e-6..1e21 => value.to_string(),
        _ => format!("{value:e}"),
    }
}

fn is_integer(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// An integer has one spelling only, zero excepted (`-0`).
fn is_canonical(text: &str) -> bool {
    text != "-0" && is_integer(text)
}

/// A number taken apart: its digits, read as `0.d1d2d3...` with d1 not zero,
/// times ten to the `magnitude`. Zero has no digits.
struct Decimal<'a> {
    negative: bool,
    magnitude: i64,
    whole: &'a [u8],
    fraction: &'a [u8],
}

impl<'a> Decimal<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(positive) => (true, positive),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().ok()?),
            None => (text, 0_i64),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let whole = whole.trim_start_matches('0');
        let mut magnitude = exponent.checked_add(i64::try_from(whole.len()).ok()?)?;
        let mut digits = fraction;
        if whole.is_empty() {
            digits = fraction.trim_start_matches('0');
            let skipped = i64::try_from(fraction.len() - digits.len()).ok()?;
            magnitude = magnitude.checked_sub(skipped)?;
        }
        Some(Self {
            negative,
            magnitude,
            whole: whole.as_bytes(),
            fraction: digits.trim_end_matches('0').as_bytes(),
        })
    }

    fn sign(&self) -> i8 {
        match (self.whole.is_empty() && self.fraction.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let sign = self.sign();
        let by_size = || match self.magnitude.cmp(&other.magnitude) {
            Ordering::Equal => self.compare_digits(other),
            different => different,
        };
        match sign.cmp(&other.sign()) {
            Ordering::Equal if sign == 0 => Ordering::Equal,
            Ordering::Equal if sign < 0 => by_size().reverse(),
            Ordering::Equal => by_size(),
            different => different,
        }
    }

    /// Digit by digit, the shorter one continued with zeros.
    fn compare_digits(&self, other: &Self) -> Ordering {
        let mut mine = self.digits();
        let mut others = other.digits();
        loop {
            match (mine.next(), others.next()) {
                (None, None) => return Ordering::Equal,
                (a, b) => match a.unwrap_or(b'0').cmp(&b.unwrap_or(b'0')) {
                    Ordering::Equal => {}
                    different => return different,
                },
            }
        }
    }

    fn digits(&self) -> impl Iterator<Item = u8> {
        self.whole.iter().chain(self.fraction).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        super::same(a, b, &mut 0)
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point() {
        assert_eq!(whole("0"), Some(0));
        assert_eq!(whole("18446744073709551615"), Some(u64::MAX));
        assert_eq!(whole("3.0"), Some(3));
        assert_eq!(whole("1e3"), Some(1_000));
        let none = ["1.5", "-1", "-1.0", "1e300", "18446744073709551616", "\"3\"", "null", "[3]", "true"];
        for none in none {
            assert_eq!(whole(none), None, "{none}");
        }
    }

    #[test]
    fn the_same_value_may_be_written_in_many_ways() {
        for (a, b) in [
            ("1", "1.0"),
            ("100", "1e2"),
            ("100", "1.00E+2"),
            ("0.001", "1e-3"),
            ("0", "-0"),
            ("0.0", "-0e5"),
            ("1e400", "10e399"),
            ("12345678901234567890.50", "1234567890123456789.05e1"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("9007199254740992", "9007199254740993"),
            ("0.1", "0.10000000000000001"),
            ("1", "-1"),
            ("1e400", "1e401"),
            ("1", "10"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn order_is_exact() {
        let ascending = [
            "-1e400",
            "-12.5",
            "-12",
            "-0.001",
            "0",
            "1e-400",
            "0.001",
            "0.0011",
            "1",
            "1.5",
            "9",
            "10",
            "12345678901234567890",
            "12345678901234567891",
            "1e400",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), Some(i.cmp(&j)), "{a} {b}");
            }
        }
        assert_eq!(compare("1e99999999999999999999", "1"), None);
        assert!(same("1e99999999999999999999", "1e99999999999999999999"));
    }

    #[test]
    fn sums_are_exact_for_integers_and_shortest_for_the_rest() {
        for (a, b, total) in [
            ("1", "2", "3"),
            ("-0", "0", "0"),
            ("12345678901234567890", "1", "12345678901234567891"),
            ("-5", "5", "0"),
            ("0.1", "0.2", "0.30000000000000004"),
            ("0.5", "0.5", "1"),
            ("1e3", "1", "1001"),
            ("1e300", "1e300", "2e300"),
            ("1e20", "0.0", "100000000000000000000"),
            ("1e21", "0.0", "1e21"),
            ("1e-7", "0", "1e-7"),
            ("1e-6", "0", "0.000001"),
            ("-0.0", "-0.0", "0"),
        ] {
            assert_eq!(sum(a, b).as_deref(), Some(total), "{a} + {b}");
        }
    }

    #[test]
    fn sums_without_a_value_are_refused() {
        let most = i128::MAX.to_string();
        for (a, b) in [
            (most.as_str(), "1"),
            ("999999999999999999999999999999999999999999", "1"),
            ("1e400", "1"),
            ("1e308", "1.7e308"),
        ] {
            assert_eq!(sum(a, b), None, "{a} + {b}");
        }
    }
}
