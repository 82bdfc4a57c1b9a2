//! A typed line as words, with the quoting rules of redis-cli.

/// Splits at spaces. `"…"` may hold `\n`, `\r`, `\t`, `\\`, `\"` and `\x41`; `'…'` may hold `\'`.
pub(super) fn split(line: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start().as_bytes();
    while let Some(&first) = rest.first() {
        let (word, after) = match first {
            b'"' => quoted(&rest[1..])?,
            b'\'' => literal(&rest[1..])?,
            _ => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                (rest[..end].to_vec(), &rest[end..])
            }
        };
        if after.first().is_some_and(|byte| !byte.is_ascii_whitespace()) {
            return Err("a closing quote must be followed by a space".to_owned());
        }
        words.push(word);
        rest = after.trim_ascii_start();
    }
    Ok(words)
}

/// A word of the line, and what follows it.
type Word<'a> = Result<(Vec<u8>, &'a [u8]), String>;

fn quoted(mut rest: &[u8]) -> Word<'_> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return Err("unbalanced quotes".to_owned()),
            [b'"', after @ ..] => return Ok((word, after)),
            [b'\\', b'x', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                word.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                });
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn literal(mut rest: &[u8]) -> Word<'_> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return Err("unbalanced quotes".to_owned()),
            [b'\'', after @ ..] => return Ok((word, after)),
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain words, both kinds of quotes, escapes.
    #[test]
    fn lines_split_like_in_redis_cli() {
        let cases: &[(&str, &[&[u8]])] = &[
            ("", &[]),
            ("  get   k ", &[b"get", b"k"]),
            ("set k \"a b\"", &[b"set", b"k", b"a b"]),
            ("set k ''", &[b"set", b"k", b""]),
            (r#"set k "\x00\n\"\\""#, &[b"set", b"k", b"\x00\n\"\\"]),
            (r"set k 'it\'s'", &[b"set", b"k", b"it's"]),
            ("set k ü", &[b"set", b"k", "ü".as_bytes()]),
        ];
        for &(line, words) in cases {
            assert_eq!(split(line).expect(line), words, "{line}");
        }
        for bad in ["get \"k", "get 'k", "get \"a\"b"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
