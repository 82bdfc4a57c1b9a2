//! Redis' patterns for key names: `*`, `?`, `[a-c]`, `[^x]` and `\\` before what stands for itself.
//!
//! Without recursion, and within a number of steps: a pattern with many stars takes time in
//! proportion to its length times that of the key (CVE-2022-36021, CVE-2024-31228).

/// Whether all of `text` is as `pattern` says; `None` if that takes more steps than `fuel` has.
pub(crate) fn matches(pattern: &[u8], text: &[u8], fuel: &mut u32) -> Option<bool> {
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last star does not fit: with one more byte for the star.
    // What stood before that star fits already, and can leave it no better start.
    let mut retry = None;
    loop {
        *fuel = fuel.checked_sub(1)?;
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            if p == pattern.len() {
                return Some(true);
            }
            retry = Some((p, t));
            continue;
        }
        let Some(&byte) = text.get(t) else { return Some(p == pattern.len()) };
        if p < pattern.len() {
            let (fits, len) = element(&pattern[p..], byte);
            *fuel = fuel.checked_sub(u32::try_from(len).ok()?)?;
            if fits {
                (p, t) = (p + len, t + 1);
                continue;
            }
        }
        let Some((after_star, start)) = retry else { return Some(false) };
        (p, t) = (after_star, start + 1);
        retry = Some((p, t));
    }
}

/// Whether the element at the start of a pattern stands for `byte`, and how long it is.
fn element(pattern: &[u8], byte: u8) -> (bool, usize) {
    match pattern {
        [b'?', ..] => (true, 1),
        [b'[', rest @ ..] => class(rest, byte),
        [b'\\', literal, ..] => (*literal == byte, 2),
        [literal, ..] => (*literal == byte, 1),
        [] => (false, 0),
    }
}

/// As [`element`], for what follows a `[`. A class that is not closed reaches to the end (redis
/// `util.c`, `stringmatchlen`).
fn class(pattern: &[u8], byte: u8) -> (bool, usize) {
    let negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        at += match &pattern[at.min(pattern.len())..] {
            [] => break,
            [b'\\', literal, ..] => {
                found |= *literal == byte;
                2
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                3
            }
            [literal, ..] => {
                found |= *literal == byte;
                1
            }
        };
    }
    (found != negated, at + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &[u8], text: &[u8]) -> bool {
        matches(pattern, text, &mut u32::MAX.clone()).expect("enough fuel")
    }

    /// The same in the plainest words: a star stands for nothing, or for a byte and a star.
    fn model(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], _) => text.is_empty(),
            ([b'*', rest @ ..], _) => {
                model(rest, text)
                    || text.split_first().is_some_and(|(_, text)| model(pattern, text))
            }
            (_, []) => false,
            ([b'?', rest @ ..], [_, text @ ..]) => model(rest, text),
            ([b'[', rest @ ..], [byte, text @ ..]) => {
                let (negated, mut rest) = match rest {
                    [b'^', rest @ ..] => (true, rest),
                    _ => (false, rest),
                };
                let mut members = Vec::new();
                loop {
                    match rest {
                        [b'\\', member, more @ ..] => {
                            members.push(*member);
                            rest = more;
                        }
                        [b']', more @ ..] => {
                            rest = more;
                            break;
                        }
                        [a, b'-', b, more @ ..] => {
                            members.extend(*a.min(b)..=*a.max(b));
                            rest = more;
                        }
                        [member, more @ ..] => {
                            members.push(*member);
                            rest = more;
                        }
                        [] => break,
                    }
                }
                members.contains(byte) != negated && model(rest, text)
            }
            ([b'\\', literal, rest @ ..] | [literal, rest @ ..], [byte, text @ ..]) => {
                literal == byte && model(rest, text)
            }
        }
    }

    /// Cases of Redis' own tests and documentation (redis `util.c`, "KEYS").
    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        let cases: &[(&str, &str, bool)] = &[
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "hllo", true),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h[a-b]llo", "hcllo", false),
            ("*", "", true),
            ("**", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a\\", "a\\", true),
            ("[\\]]", "]", true),
            ("[a", "a", true),
            ("[^", "x", true),
            ("[", "[", false),
            ("[]", "]", false),
            ("[^]", "x", true),
            ("[a-", "-", true),
            ("[a-]", "]", true),
            ("*foo", "foofoobar", false),
            ("*foo", "foobarfoo", true),
            ("?", "", false),
            ("*?", "", false),
        ];
        for &(pattern, text, want) in cases {
            assert_eq!(check(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
            assert_eq!(model(pattern.as_bytes(), text.as_bytes()), want, "model: {pattern} {text}");
        }
    }

    /// Patterns that once took exponential time, or one stack frame for each star.
    #[test]
    fn time_and_stack_are_bounded() {
        let text = vec![b'a'; 20_000];
        let stars = b"*a".repeat(500);
        assert!(check(&stars, &text));
        let hopeless = [&b"*"[..], &b"a".repeat(500), b"b"].concat();
        let mut fuel = 2 * 20_000 * 502;
        assert_eq!(matches(&hopeless, &text, &mut fuel), Some(false), "product of the lengths");
        let mut fuel = 1000;
        assert_eq!((matches(&hopeless, &text, &mut fuel), fuel), (None, 0));
    }

    proptest! {
        #[test]
        fn the_matcher_agrees_with_the_model(
            pattern in r"[ab*?\[\]^\\-]{0,9}",
            text in r"[ab*\[\]^\\-]{0,7}",
        ) {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(check(pattern, text), model(pattern, text));
        }

        #[test]
        fn no_bytes_make_it_panic(pattern: Vec<u8>, text: Vec<u8>, mut fuel: u32) {
            let _ = matches(&pattern, &text, &mut fuel);
        }
    }
}
