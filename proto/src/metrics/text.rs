//! Prometheus' text exposition format, version 0.0.4.
//!
//! Source: https://prometheus.io/docs/instrumenting/exposition_formats/

use std::{
    fmt::{Display, Write},
    time::Duration,
};

use super::Histogram;

/// What the text is served as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics. Families are written whole, one after the other.
#[derive(Default)]
pub struct Text(String);

/// Label names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// Begins a family that only grows; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family(name, "counter", help)
    }

    /// Begins a family of durations; its name ends in `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_seconds"), "{name}");
        self.family(name, "histogram", help)
    }

    /// Begins a family of durations of which only their number and sum are known; its name ends in `_seconds`.
    pub fn summary(&mut self, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_seconds"), "{name}");
        self.family(name, "summary", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        put(&mut self.0, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text: &mut self.0, name }
    }

    pub fn finish(self) -> String {
        self.0
    }
}

/// The samples of one metric.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// The one sample of a family without labels.
    pub fn is(mut self, value: impl Display) {
        self.with(&[], value);
    }

    pub fn with(&mut self, labels: Labels<'_>, value: impl Display) {
        self.sample("", labels, None, value);
    }

    /// All samples of a histogram.
    pub fn counts(&mut self, labels: Labels<'_>, histogram: &Histogram) {
        let mut count = 0;
        for (bound, cumulative) in histogram.cumulative() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            self.sample("_bucket", labels, Some(&bound), cumulative);
            count = cumulative;
        }
        self.sample("_sum", labels, None, histogram.sum().as_secs_f64());
        // The same number as in the last bucket, although more may have been counted meanwhile.
        self.sample("_count", labels, None, count);
    }

    /// Both samples of a summary without labels.
    pub fn sums(mut self, count: u64, sum: Duration) {
        self.sample("_sum", &[], None, sum.as_secs_f64());
        self.sample("_count", &[], None, count);
    }

    fn sample(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            put(self.text, format_args!("{separator}{name}=\"{}\"", Escaped(value)));
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        put(self.text, format_args!(" {value}\n"));
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to memory does not fail");
}

/// A label's value with backslashes, quotes and line ends escaped.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_the_format_says() {
        let mut text = Text::default();
        text.gauge("a_bytes", "Bytes.").is(7);
        text.counter("b_total", "Calls.").with(&[("x", "1"), ("y", "a\"b\\\n")], 2.5);
        let histogram = Histogram::new(&[1_000]);
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_secs(2));
        text.histogram("c_seconds", "Times.").counts(&[("x", "1")], &histogram);
        text.summary("d_seconds", "Sums.").sums(3, Duration::from_millis(500));
        let expected = "# HELP a_bytes Bytes.\n# TYPE a_bytes gauge\na_bytes 7\n\
             # HELP b_total Calls.\n# TYPE b_total counter\nb_total{x=\"1\",y=\"a\\\"b\\\\\\n\"} 2.5\n\
             # HELP c_seconds Times.\n# TYPE c_seconds histogram\n\
             c_seconds_bucket{x=\"1\",le=\"0.001\"} 1\nc_seconds_bucket{x=\"1\",le=\"+Inf\"} 2\n\
             c_seconds_sum{x=\"1\"} 2.001\nc_seconds_count{x=\"1\"} 2\n\
             # HELP d_seconds Sums.\n# TYPE d_seconds summary\nd_seconds_sum 0.5\nd_seconds_count 3\n";
        assert_eq!(text.finish(), expected);
    }
}
