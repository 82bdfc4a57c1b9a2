//! Bytes as readable text without loss.

/// Stands before two hexadecimal digits.
const ESCAPE: u8 = b'%';

/// Printable ASCII as it is, everything else as `%` and two digits.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if is_plain(byte) {
            text.push(char::from(byte));
        } else {
            text.push(char::from(ESCAPE));
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
    }
    text
}

/// The bytes of such a text.
///
/// # Errors
/// Says where the text is not what [`escape`] makes.
pub fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let at = text.len() - rest.len();
        rest = after;
        if is_plain(*first) {
            bytes.push(*first);
        } else if *first == ESCAPE {
            let digits = after.first_chunk::<2>().and_then(|&[high, low]| {
                let digit = |byte| char::from(byte).to_digit(16);
                u8::try_from(digit(high)? << 4 | digit(low)?).ok()
            });
            bytes.push(digits.ok_or_else(|| format!("byte {at}: % needs two hex digits"))?);
            rest = &after[2..];
        } else {
            return Err(format!("byte {at}: {first:#04x} must be written as %{first:02x}"));
        }
    }
    Ok(bytes)
}

const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != ESCAPE
}
