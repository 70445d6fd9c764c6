//! Quantities: `500m`, `1.5Gi`, `1e3`. Exact fixed point, no floating point anywhere.
//!
//! As in Kubernetes: a magnitude beyond 2^63-1 is capped, and what is finer than a nano is rounded away from zero.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde_json::Value;
use thiserror::Error;

const NANOS: i128 = 1_000_000_000;
const NANOS_MAX: i128 = i64::MAX as i128 * NANOS;
/// Digits beyond these cannot be told apart from the cap or from the rounding.
const DIGITS_MAX: usize = 128;

/// A number with the family of suffixes that it was written with and is printed with.
///
/// Compared by its value alone: `1` equals `1000m`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The family of suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, ...: powers of 1024.
    Binary,
    /// `m`, none, `k`, `M`, ...: powers of 1000.
    Decimal,
    /// `e3`, `e-3`, ...
    Exponent,
}

/// Why a text is no quantity. The message is Kubernetes' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::Decimal };

    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self { nanos: value as i128 * NANOS, format }
    }

    /// Thousandths: millicores of a CPU.
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Self { nanos: milli as i128 * (NANOS / 1000), format }
    }

    /// Takes the JSON forms: a string or a number. Null and others are an error.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError),
        }
    }

    /// Whole units, rounded away from zero: bytes of memory.
    pub fn value(&self) -> i128 {
        divide_up(self.nanos, NANOS)
    }

    /// Thousandths, rounded away from zero: millicores of a CPU.
    pub fn milli(&self) -> i128 {
        divide_up(self.nanos, NANOS / 1000)
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// The sum in this quantity's family of suffixes, capped as parsing is.
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: cap(self.nanos + other.nanos), format }
    }

    /// The difference in this quantity's family of suffixes, capped as parsing is.
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: cap(self.nanos - other.nanos), format: self.format }
    }
}

fn cap(nanos: i128) -> i128 {
    nanos.clamp(-NANOS_MAX, NANOS_MAX)
}

/// Divides, rounding away from zero.
fn divide_up(value: i128, by: i128) -> i128 {
    let rest = value % by;
    value / by + if rest == 0 { 0 } else { rest.signum() }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, text) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError);
        }
        let (format, factor, exponent) = parse_suffix(suffix)?;
        let magnitude = magnitude(whole, fraction, factor, exponent);
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, format })
    }
}

/// The family, a factor and a power of ten to multiply with.
fn parse_suffix(suffix: &str) -> Result<(Format, i128, i32), QuantityError> {
    let binary = |power: u32| Ok((Format::Binary, 1i128 << (10 * power), 0));
    let decimal = |exponent: i32| Ok((Format::Decimal, 1, exponent));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(QuantityError);
            }
            // Beyond these the number is capped or vanishes whatever its digits.
            let bound = DIGITS_MAX as i32 * 2;
            let exponent =
                exponent.parse::<i32>().unwrap_or(if exponent.starts_with('-') { -bound } else { bound });
            Ok((Format::Exponent, 1, exponent.clamp(-bound, bound)))
        }
    }
}

/// Nanos, rounded up and capped. The digits are worked off one by one, so that no intermediate overflows.
fn magnitude(whole: &str, fraction: &str, factor: i128, exponent: i32) -> i128 {
    let whole = whole.trim_start_matches('0');
    let digits = || whole.bytes().chain(fraction.bytes()).map(|byte| i128::from(byte - b'0'));
    if digits().all(|digit| digit == 0) {
        return 0;
    }
    // The value is 0.d1d2d3... * 10^point * factor.
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX) + i64::from(exponent);
    let mut nanos: i128 = 0;
    let mut inexact = false;
    let places = point + 9;
    for (index, digit) in (0i64..).zip(digits()) {
        // A power of two as factor can lift digits below the nano back above it; see the remainder below.
        if index < places {
            nanos = nanos * 10 + digit;
            if nanos > NANOS_MAX {
                return NANOS_MAX;
            }
        } else if factor == 1 {
            inexact |= digit != 0;
        }
    }
    let count = i64::try_from(whole.len() + fraction.len()).unwrap_or(i64::MAX);
    for _ in count..places {
        nanos *= 10;
        if nanos > NANOS_MAX {
            return NANOS_MAX;
        }
    }
    if factor == 1 {
        return cap(nanos + i128::from(inexact));
    }
    // Binary suffixes: the digits below the nano, scaled by the factor in steps that fit.
    let kept = usize::try_from(places.max(0)).unwrap_or(usize::MAX);
    let mut scale: i128 = 1;
    let mut below: i128 = 0;
    for digit in digits().skip(kept).take(18) {
        scale *= 10;
        below = below * 10 + digit;
    }
    let rest = digits().skip(kept.saturating_add(18)).any(|digit| digit != 0);
    let lifted =
        below.checked_mul(factor).map_or(NANOS_MAX, |product| divide_up(product + i128::from(rest), scale));
    nanos.checked_mul(factor).map_or(NANOS_MAX, |product| cap(product.saturating_add(lifted)))
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANOS;
        if self.format == Format::Binary && !small {
            let mut value = self.value();
            let mut power = 0;
            while value % 1024 == 0 && power < 6 {
                value /= 1024;
                power += 1;
            }
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (Format::Exponent, 0) => write!(f, "{value}"),
            (Format::Exponent, _) => write!(f, "{value}e{exponent}"),
            _ => {
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(f, "{value}{}", suffixes[((exponent + 9) / 3) as usize])
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("1500000", "1500k"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("0.25Mi", "256Ki"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-1", "1200e-3"),
            ("5e0", "5"),
            ("1E", "1E"),
            ("100u", "100u"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("+3M", "3M"),
            ("-2k", "-2k"),
            ("99999999999999999999", "9223372036854775807"),
            ("1e99999999999", "9223372036854775807"),
            ("1e-99999999999", "1e-9"),
            ("000000000000000000000000000000000000000000000000001", "1"),
            ("0.000000000000000000000000000000000000000000000001", "1n"),
            ("16Ei", "9223372036854775807"),
            ("1.0000000000Ki", "1Ki"),
            ("0.0001Ki", "102400u"),
        ];
        for (text, expected) in cases {
            let quantity: Quantity = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!(quantity.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn numbers() {
        let milli = |text: &str| text.parse::<Quantity>().unwrap().milli();
        assert_eq!((milli("250m"), milli("2"), milli("0.0001"), milli("1Ki")), (250, 2000, 1, 1_024_000));
        assert_eq!("1500m".parse::<Quantity>().unwrap().value(), 2);
        assert_eq!("-1500m".parse::<Quantity>().unwrap().value(), -2);
        assert_eq!("64Mi".parse::<Quantity>().unwrap().value(), 64 * 1024 * 1024);
        assert!("999m".parse::<Quantity>().unwrap() < "1".parse().unwrap());
        assert_eq!("1".parse::<Quantity>(), "1000m".parse());
        let sum = Quantity::ZERO.plus("1Gi".parse().unwrap()).plus("512Mi".parse().unwrap());
        assert_eq!(sum.to_string(), "1536Mi");
        assert_eq!(sum.minus("1Gi".parse().unwrap()).to_string(), "512Mi");
        assert_eq!(Quantity::from_json(&serde_json::json!(0.5)).unwrap().to_string(), "500m");
        assert_eq!(Quantity::from_milli(1500, Format::Decimal).to_string(), "1500m");
        assert_eq!(Quantity::new(2048, Format::Binary).to_string(), "2Ki");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "", ".", "-", "a", "1x", "1.2.3", "1 ", " 1", "1KI", "1e", "1e+", "1ee3", "Ki", "1_0", "--1",
            "1mi",
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError), "{text}");
        }
        assert!(Quantity::from_json(&Value::Null).is_err());
    }

    proptest! {
        #[test]
        fn printing_loses_nothing(nanos in -NANOS_MAX..=NANOS_MAX, format in 0..2) {
            let format = if format == 0 { Format::Decimal } else { Format::Exponent };
            let quantity = Quantity { nanos, format };
            prop_assert_eq!(quantity.to_string().parse::<Quantity>().unwrap(), quantity);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,6}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let printed = quantity.to_string();
                prop_assert_eq!(printed.parse::<Quantity>().unwrap().to_string(), printed);
            }
        }
    }
}
