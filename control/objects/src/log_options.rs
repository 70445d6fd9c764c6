//! What a client asks of a container's log: the query of `pods/log`.

use serde::{Deserialize, Serialize};

/// The query parameters of `GET .../pods/NAME/log` (core/v1 `PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogOptions {
    /// Empty: the pod's only container.
    pub container: String,
    /// Goes on with what is written from now on.
    pub follow: bool,
    /// The instance before the present one.
    pub previous: bool,
    /// Lines not older than this, in seconds. Excludes `since_time`.
    pub since_seconds: Option<i64>,
    /// Lines not older than this moment, RFC 3339.
    pub since_time: Option<String>,
    /// At most this many lines, counted from the end.
    pub tail_lines: Option<i64>,
    /// Each line begins with its RFC 3339 time.
    pub timestamps: bool,
    /// At most this many bytes, after which the stream ends.
    pub limit_bytes: Option<i64>,
}

impl LogOptions {
    /// What is wrong with the options by themselves, in the words of Kubernetes.
    pub fn validate(&self) -> Vec<crate::FieldError> {
        use crate::FieldError;
        let mut errors = Vec::new();
        if let Some(lines) = self.tail_lines.filter(|lines| *lines < 0) {
            errors.push(FieldError::invalid("tailLines", lines, "must be greater than or equal to 0"));
        }
        if let Some(bytes) = self.limit_bytes.filter(|bytes| *bytes < 1) {
            errors.push(FieldError::invalid("limitBytes", bytes, "must be greater than 0"));
        }
        if self.since_seconds.is_some() && self.since_time.is_some() {
            errors.push(FieldError::forbidden(
                "",
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        } else if let Some(seconds) = self.since_seconds.filter(|seconds| *seconds < 1) {
            errors.push(FieldError::invalid("sinceSeconds", seconds, "must be greater than 0"));
        }
        if let Some(time) = &self.since_time
            && time.parse::<jiff::Timestamp>().is_err()
        {
            errors.push(FieldError::invalid("sinceTime", time.as_str(), "must be an RFC 3339 time"));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let faults = |options: LogOptions| {
            options.validate().iter().map(|error| error.field.clone()).collect::<Vec<_>>()
        };
        assert!(faults(LogOptions { tail_lines: Some(0), ..LogOptions::default() }).is_empty());
        assert_eq!(faults(LogOptions { tail_lines: Some(-1), ..LogOptions::default() }), ["tailLines"]);
        assert_eq!(faults(LogOptions { limit_bytes: Some(0), ..LogOptions::default() }), ["limitBytes"]);
        let time = Some("yesterday".to_owned());
        assert_eq!(faults(LogOptions { since_time: time, ..LogOptions::default() }), ["sinceTime"]);
    }
}
