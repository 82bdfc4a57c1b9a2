//! Decimal numbers and lines, read and written without `std::fmt`.

/// Outcome of reading a length line: digits up to CR LF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// The whole line is there.
    Number {
        /// Its value.
        value: i64,
        /// Where the next line begins.
        next: usize,
    },
    /// All bytes so far could begin a number.
    Incomplete,
    /// No continuation makes this a number.
    Invalid,
}

/// Reads a length at `at`, as strictly as Redis' `string2ll`: no plus sign, no leading zeros.
/// Reads at most 21 bytes, so beginning again with more input costs nothing to speak of.
pub(crate) fn read_length(input: &[u8], at: usize) -> Length {
    let rest = input.get(at..).unwrap_or_default();
    let mut magnitude: i64 = 0;
    let mut digits = 0usize;
    let mut negative = false;
    for (i, &byte) in rest.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                if digits > 0 && magnitude == 0 {
                    return Length::Invalid;
                }
                let digit = i64::from(byte - b'0');
                let Some(sum) = magnitude.checked_mul(10).and_then(|n| n.checked_add(digit)) else {
                    return Length::Invalid;
                };
                magnitude = sum;
                digits += 1;
            }
            b'-' if i == 0 => negative = true,
            b'\r' if digits > 0 && !(negative && magnitude == 0) => {
                return match rest.get(i + 1) {
                    None => Length::Incomplete,
                    Some(b'\n') => Length::Number {
                        value: if negative { -magnitude } else { magnitude },
                        next: at + i + 2,
                    },
                    Some(_) => Length::Invalid,
                };
            }
            _ => return Length::Invalid,
        }
    }
    Length::Incomplete
}

/// Reads a signed number that fills `text`; a plus sign and leading zeros are fine.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends `value` in decimal.
pub(crate) fn push_integer(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    push_unsigned(value.unsigned_abs(), out);
}

/// Appends `value` in decimal.
pub(crate) fn push_unsigned(mut value: u64, out: &mut Vec<u8>) {
    if value < 10 {
        // Most counts and many answers have one digit.
        out.push(b'0' + value as u8);
        return;
    }
    const DIGITS_MAX: usize = 20;
    let mut digits = [0u8; DIGITS_MAX];
    let mut used = 0;
    for place in digits.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
        used += 1;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(DIGITS_MAX - used..).unwrap_or_default());
}

/// Appends `prefix`, `value` in decimal, and a line end: the head of every sized element.
pub(crate) fn push_head(prefix: u8, value: usize, out: &mut Vec<u8>) {
    out.push(prefix);
    push_unsigned(value as u64, out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Redis' `string2ll` accepts and what it does not.
    #[test]
    fn lengths_are_read_as_redis_reads_them() {
        let cases: &[(&[u8], Length)] = &[
            (b"0\r\n", Length::Number { value: 0, next: 3 }),
            (b"10\r\nx", Length::Number { value: 10, next: 4 }),
            (b"-1\r\n", Length::Number { value: -1, next: 4 }),
            (b"9223372036854775807\r\n", Length::Number { value: i64::MAX, next: 21 }),
            (b"9223372036854775808\r\n", Length::Invalid),
            (b"99999999999999999999999", Length::Invalid),
            (b"", Length::Incomplete),
            (b"-", Length::Incomplete),
            (b"12", Length::Incomplete),
            (b"12\r", Length::Incomplete),
            (b"12\n", Length::Invalid),
            (b"12\rx", Length::Invalid),
            (b"\r\n", Length::Invalid),
            (b"-\r\n", Length::Invalid),
            (b"-0\r\n", Length::Invalid),
            (b"+1\r\n", Length::Invalid),
            (b"01\r\n", Length::Invalid),
            (b"00\r\n", Length::Invalid),
            (b" 1\r\n", Length::Invalid),
            (b"1 \r\n", Length::Invalid),
            (b"1-\r\n", Length::Invalid),
        ];
        for &(text, want) in cases {
            assert_eq!(read_length(text, 0), want, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn numbers_are_written_as_std_writes_them() {
        for value in [0, 1, 9, 10, 11, 99, 100, 12345, i64::MAX, -1, -10, i64::MIN] {
            let mut out = Vec::new();
            push_integer(value, &mut out);
            assert_eq!(out, value.to_string().into_bytes());
        }
        let mut out = Vec::new();
        push_unsigned(u64::MAX, &mut out);
        assert_eq!(out, u64::MAX.to_string().into_bytes());
    }
}
