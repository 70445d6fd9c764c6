//! The part of a blob that a request asks for. Source: RFC 9110, 14.1 and 14.2.

use std::ops::Range;

/// What of so many bytes is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    Part(Range<u64>),
    /// Nothing of what there is.
    Nothing,
}

/// Reads a `Range` header. Several ranges at once, and other units, are answered with the whole, which is allowed.
pub fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some((first, last)) =
        header.and_then(|value| value.trim().strip_prefix("bytes=")).and_then(|range| range.split_once('-'))
    else {
        return Wanted::Whole;
    };
    let part = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Some(_), Some(_)) => return Wanted::Nothing,
        (Some(first), None) if last.trim().is_empty() => first..size,
        (None, Some(length)) if first.trim().is_empty() => size.saturating_sub(length)..size,
        _ => return Wanted::Whole,
    };
    if part.is_empty() { Wanted::Nothing } else { Wanted::Part(part) }
}

/// Digits; what is beyond all sizes is the largest of them.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_there_is_of_it() {
        for (header, expected) in [
            (None, Wanted::Whole),
            (Some("bytes=0-0"), Wanted::Part(0..1)),
            (Some("bytes=5-9"), Wanted::Part(5..10)),
            (Some("bytes=5-"), Wanted::Part(5..20)),
            (Some("bytes=-5"), Wanted::Part(15..20)),
            (Some("bytes=-50"), Wanted::Part(0..20)),
            (Some("bytes=15-99999999999999999999999"), Wanted::Part(15..20)),
            (Some("bytes=20-"), Wanted::Nothing),
            (Some("bytes=20-30"), Wanted::Nothing),
            (Some("bytes=5-0"), Wanted::Nothing),
            (Some("bytes=-0"), Wanted::Nothing),
            (Some("bytes=0-1,5-6"), Wanted::Whole),
            (Some("lines=0-1"), Wanted::Whole),
            (Some("bytes=a-b"), Wanted::Whole),
            (Some("bytes=-"), Wanted::Whole),
        ] {
            assert_eq!(wanted(header, 20), expected, "{header:?}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Nothing);
    }
}
