//! Ages as kubectl shows them.

use jiff::{SignedDuration, Timestamp};

/// How long ago the RFC 3339 time in `since` was: `5m12s`. `<unknown>` where there is none.
pub fn age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(since) => human_duration(now.duration_since(since)),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Two units at most, coarser the longer. Up to two seconds in the future count as now, as clocks differ.
pub fn human_duration(duration: SignedDuration) -> String {
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectls() {
        let (minute, hour, day, year) = (60, 3600, 86_400, 365 * 86_400);
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (7 * hour + 20 * minute, "7h20m"),
            (8 * hour + 20 * minute, "8h"),
            (47 * hour, "47h"),
            (2 * day, "2d"),
            (7 * day + 5 * hour, "7d5h"),
            (8 * day + 5 * hour, "8d"),
            (729 * day, "729d"),
            (2 * year + 3 * day, "2y3d"),
            (9 * year + 3 * day, "9y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
        let now: Timestamp = "2026-01-01T00:05:12Z".parse().unwrap();
        assert_eq!(age("2026-01-01T00:00:00Z", now), "5m12s");
        assert_eq!(age("", now), "<unknown>");
    }
}
