//! Bytes in JSON: base64 as the Go programs around Kubernetes read and write it.

use base64::{
    Engine,
    alphabet::STANDARD as ALPHABET,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

/// Bits that the last letter has too many may be anything; padding is due.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// The bytes of a text, line breaks aside; none where it is no base64. Source: Go's `base64.StdEncoding`.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let breaks = |byte: &u8| matches!(byte, b'\r' | b'\n');
    if !text.as_bytes().iter().any(breaks) {
        return LENIENT.decode(text).ok();
    }
    let letters: Vec<u8> = text.bytes().filter(|byte| !breaks(byte)).collect();
    LENIENT.decode(letters).ok()
}

/// The one text that every decoder takes.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read() {
        for text in ["YQ==", "YQ\n==", "Y\r\nQ=\n=", "YR=="] {
            assert_eq!(decode(text).as_deref(), Some(b"a".as_slice()), "{text:?}");
        }
        assert_eq!(decode("\n").as_deref(), Some(b"".as_slice()));
        for text in ["YQ", "YQ=", "YQ===", "Y Q=", "Y-==", "%"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        assert_eq!(encode(b"a"), "YQ==");
    }
}
