//! The formats of text that a schema may ask for. Others are not looked at, as upstream does.

use core::net::{Ipv4Addr, Ipv6Addr};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, civil::Date};

/// Whether a text is of a format.
pub fn is_of(text: &str, format: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "byte" => STANDARD.decode(text).is_ok(),
        "uuid" => is_uuid(text),
        _ => true,
    }
}

/// RFC 9562, with or without dashes.
fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    let dash = |at: usize| bytes.len() == 36 && [8, 13, 18, 23].contains(&at);
    matches!(bytes.len(), 32 | 36)
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| if dash(at) { *byte == b'-' } else { byte.is_ascii_hexdigit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        for (text, format, fits) in [
            ("2026-01-01T00:00:00Z", "date-time", true),
            ("2026-01-01", "date-time", false),
            ("2026-01-01", "date", true),
            ("10.0.0.1", "ipv4", true),
            ("fd00::1", "ipv4", false),
            ("fd00::1", "ipv6", true),
            ("aGk=", "byte", true),
            ("a", "byte", false),
            ("123e4567-e89b-12d3-a456-426614174000", "uuid", true),
            ("123e4567e89b12d3a456426614174000", "uuid", true),
            ("----", "uuid", false),
            ("anything", "of-the-user", true),
        ] {
            assert_eq!(is_of(text, format), fits, "{text} is {format}");
        }
    }
}
