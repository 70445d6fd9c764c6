//! Carries what raft-rs logs through slog to tracing.

use std::fmt::{self, Write as _};

use slog::{Drain, KV, Level, OwnedKVList, Record};

/// The target under which the library's lines appear.
const TARGET: &str = "coracle_raft::library";

/// A logger for raft-rs. Its info lines become debug: the driver reports state changes itself.
pub fn logger() -> slog::Logger {
    slog::Logger::root(Bridge.fuse(), slog::o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: TARGET, detail = %line(record, values), "raft library");
            }
            Level::Warning => tracing::warn!(target: TARGET, detail = %line(record, values), "raft library"),
            // The lines are formatted only where somebody listens: raft-rs logs each message it sends.
            Level::Info if tracing::enabled!(target: TARGET, tracing::Level::DEBUG) => {
                tracing::debug!(target: TARGET, detail = %line(record, values), "raft library");
            }
            Level::Debug | Level::Trace if tracing::enabled!(target: TARGET, tracing::Level::TRACE) => {
                tracing::trace!(target: TARGET, detail = %line(record, values), "raft library");
            }
            _ => {}
        }
        Ok(())
    }
}

fn line(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut line = Line(record.msg().to_string());
    // Writing into a String cannot fail.
    let _ = record.kv().serialize(record, &mut line);
    let _ = values.serialize(record, &mut line);
    line.0
}

struct Line(String);

impl slog::Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        Ok(write!(self.0, " {key}={value}")?)
    }
}

#[cfg(test)]
mod tests {
    use slog::KV;

    #[test]
    fn a_line_holds_message_and_values() {
        struct Check;
        impl slog::Drain for Check {
            type Ok = ();
            type Err = slog::Never;
            fn log(&self, record: &slog::Record<'_>, values: &slog::OwnedKVList) -> Result<(), slog::Never> {
                let line = super::line(record, values);
                assert!(
                    line.starts_with("became leader")
                        && line.contains(" term=3")
                        && line.contains(" raft_id=1")
                );
                let mut only = super::Line(String::new());
                assert!(record.kv().serialize(record, &mut only).is_ok());
                Ok(())
            }
        }
        let logger = slog::Logger::root(Check, slog::o!("raft_id" => 1));
        slog::info!(logger, "became leader"; "term" => 3);
    }
}
