//! CRC32C (Castagnoli), for the few small payloads this crate makes itself.

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

static TABLE: [u32; 256] = table();

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes
        .iter()
        .fold(u32::MAX, |crc, &byte| (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)]);
    !crc
}

#[cfg(test)]
mod tests {
    /// The check value of the CRC catalogue, and the value an empty payload carries.
    #[test]
    fn matches_the_catalogue() {
        assert_eq!(super::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(super::crc32c(b""), 0);
    }
}
