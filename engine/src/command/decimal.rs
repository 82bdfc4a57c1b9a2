//! Decimal numbers as `INCRBYFLOAT` adds them: exactly, so that every replica on every machine gets
//! the same, and 0.1 + 0.2 is 0.3.

/// Digits behind the point (redis `util.c`, `ld2string`: 17).
const SCALE: u32 = 17;
const ONE: i128 = 10i128.pow(SCALE);
/// Digits before the point that fit beside them.
const EXPONENT_MAX: i64 = 20;

/// A number with 17 digits behind its point and about 21 before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal(i128);

impl Decimal {
    pub(crate) const ZERO: Self = Self(0);

    /// Reads `-12.5`, `+.5`, `5e3` or `2.5E-3`; digits beyond the 17th behind the point are cut
    /// off. `None` if it is no number, or too large.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let (negative, text) = match text.split_first()? {
            (b'-', rest) => (true, rest),
            (b'+', rest) => (false, rest),
            _ => (false, text),
        };
        let exponent_at = text.iter().position(|byte| matches!(byte, b'e' | b'E'));
        let (number, exponent) = match exponent_at {
            Some(at) => (&text[..at], exponent(&text[at + 1..])?),
            None => (text, 0),
        };
        let point = number.iter().position(|&byte| byte == b'.').unwrap_or(number.len());
        let (whole, fraction) = number.split_at(point);
        let fraction = fraction.get(1..).unwrap_or_default();
        let digits = || whole.iter().chain(fraction);
        if digits().next().is_none() || !digits().all(u8::is_ascii_digit) {
            return None;
        }
        let mut value: i128 = 0;
        // The first digit stands this many places before the last one that counts.
        let first = i64::try_from(whole.len()).ok()? + exponent + i64::from(SCALE) - 1;
        for (digit, place) in digits().zip((i64::MIN..=first).rev()) {
            let digit = i128::from(digit - b'0');
            if digit == 0 || place < 0 {
                continue;
            }
            if place > EXPONENT_MAX + i64::from(SCALE) {
                return None;
            }
            let part = 10i128.checked_pow(u32::try_from(place).ok()?)?.checked_mul(digit)?;
            value = value.checked_add(part)?;
        }
        Some(Self(if negative { -value } else { value }))
    }

    pub(crate) fn add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The shortest way to write it, without an exponent.
    pub(crate) fn to_text(self) -> String {
        let (whole, fraction) = (self.0.unsigned_abs() / ONE as u128, self.0.abs() % ONE);
        let sign = if self.0 < 0 { "-" } else { "" };
        if fraction == 0 {
            return format!("{sign}{whole}");
        }
        let fraction = format!("{fraction:017}");
        format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

fn exponent(text: &[u8]) -> Option<i64> {
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 5)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_and_written() {
        let cases: &[(&str, Option<&str>)] = &[
            ("0", Some("0")),
            ("-0", Some("0")),
            ("10.50", Some("10.5")),
            ("+.5", Some("0.5")),
            ("5.", Some("5")),
            ("5.0e3", Some("5000")),
            ("-2.5E-3", Some("-0.0025")),
            ("1e20", Some("100000000000000000000")),
            ("1e21", None),
            ("1e-17", Some("0.00000000000000001")),
            ("9e-18", Some("0")),
            ("0.123456789012345678", Some("0.12345678901234567")),
            ("0e99999", Some("0")),
            ("1e99999", None),
            ("-999999999999999999999", Some("-999999999999999999999")),
            ("", None),
            (".", None),
            ("-", None),
            ("1e", None),
            ("e5", None),
            ("1.2.3", None),
            ("0x10", None),
            ("nan", None),
            ("inf", None),
            (" 1", None),
            ("1 ", None),
        ];
        for &(text, want) in cases {
            let got = Decimal::parse(text.as_bytes()).map(Decimal::to_text);
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }

    /// Unlike with binary fractions (Redis, "INCRBYFLOAT": 17 digits of a long double).
    #[test]
    fn sums_are_exact() {
        let sum = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|text| Decimal::parse(text.as_bytes()).unwrap());
            a.add(b).map(Decimal::to_text)
        };
        assert_eq!(sum("0.1", "0.2").as_deref(), Some("0.3"));
        assert_eq!(sum("5.0e3", "2.0e2").as_deref(), Some("5200"));
        assert_eq!(sum("10.6", "-5").as_deref(), Some("5.6"));
        assert_eq!(sum("1e20", "-0.1").as_deref(), Some("99999999999999999999.9"));
        let most = "9e20";
        assert_eq!(sum(most, most), None, "more than fits");
    }

    proptest! {
        /// What is written is read back as the same; nothing panics.
        #[test]
        fn text_round_trips(value in -10i128.pow(38)..10i128.pow(38), junk: Vec<u8>) {
            let text = Decimal(value).to_text();
            prop_assert_eq!(Decimal::parse(text.as_bytes()), Some(Decimal(value)));
            let _ = Decimal::parse(&junk);
        }
    }
}
