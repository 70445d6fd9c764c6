//! Probes: when the next one is due and what its result changes.
//!
//! Thresholds, first verdicts and holding as in kubelet's prober worker.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    restart::after,
    spec::{Container, HttpHeader, Probe},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }

    /// As it starts the message of an Unhealthy event.
    pub fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// One check that the agent makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeCheck {
    Http {
        port: u16,
        /// By TLS, whatever certificate there is.
        tls: bool,
        path: String,
        headers: Vec<HttpHeader>,
    },
    Tcp {
        port: u16,
    },
    /// Cannot be made here; the text says why and counts as a failure.
    Impossible(String),
}

impl ProbeCheck {
    pub fn of(probe: &Probe, container: &Container) -> Self {
        if let Some(http) = &probe.http_get {
            let Some(port) = http.port.resolve(container) else { return Self::no_port() };
            let path = if http.path.starts_with('/') { http.path.clone() } else { format!("/{}", http.path) };
            let tls = http.scheme.eq_ignore_ascii_case("https");
            Self::Http { port, tls, path, headers: http.http_headers.clone() }
        } else if let Some(tcp) = &probe.tcp_socket {
            tcp.port.resolve(container).map_or_else(Self::no_port, |port| Self::Tcp { port })
        } else if probe.exec.is_some() {
            Self::Impossible("exec probes are not served by this node yet; use httpGet or tcpSocket".into())
        } else if probe.grpc.is_some() {
            Self::Impossible("gRPC probes are not served by this node yet; use httpGet or tcpSocket".into())
        } else {
            Self::Impossible("missing probe handler".into())
        }
    }

    fn no_port() -> Self {
        Self::Impossible("the probe names a port that the container does not declare".into())
    }
}

/// What a probe says of its container at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No threshold reached since the container started.
    Unknown,
    Passed,
    Failed,
}

/// One probe of one running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeRun {
    pub next_at: Timestamp,
    pub in_flight: bool,
    pub verdict: Verdict,
    last: Option<bool>,
    in_a_row: u32,
}

impl ProbeRun {
    /// The container started at `started`.
    pub fn new(probe: &Probe, started: Timestamp) -> Self {
        let next_at = after(started, Duration::from_secs(probe.initial_delay_seconds.into()));
        Self { next_at, in_flight: false, verdict: Verdict::Unknown, last: None, in_a_row: 0 }
    }

    pub fn is_due(&self, now: Timestamp) -> bool {
        !self.in_flight && self.next_at <= now
    }

    /// The check goes out at `now`.
    pub fn begin(&mut self, probe: &Probe, now: Timestamp) {
        self.in_flight = true;
        self.next_at = after(now, Duration::from_secs(probe.period_seconds.max(1).into()));
    }

    /// Takes a result; the verdict moves once its threshold is reached.
    pub fn record(&mut self, probe: &Probe, success: bool) {
        self.in_flight = false;
        self.in_a_row = if self.last == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { probe.success_threshold } else { probe.failure_threshold };
        if self.in_a_row >= threshold.max(1) {
            self.verdict = if success { Verdict::Passed } else { Verdict::Failed };
        }
    }
}

/// The most that one check may take.
pub fn timeout(probe: &Probe) -> Duration {
    Duration::from_secs(probe.timeout_seconds.max(1).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ContainerPort, HttpGet, PortRef};

    #[test]
    fn verdicts_move_at_their_thresholds() {
        let probe = Probe { success_threshold: 2, failure_threshold: 3, ..Probe::default() };
        let mut run = ProbeRun::new(&probe, Timestamp::UNIX_EPOCH);
        let mut verdicts = Vec::new();
        for success in [true, true, false, false, true, false, false, false, true, true] {
            run.record(&probe, success);
            verdicts.push(run.verdict);
        }
        use Verdict::*;
        assert_eq!(
            verdicts,
            [Unknown, Passed, Passed, Passed, Passed, Passed, Passed, Failed, Failed, Passed]
        );
    }

    #[test]
    fn a_probe_waits_for_its_delay_and_then_its_period() {
        let probe = Probe { initial_delay_seconds: 5, period_seconds: 3, ..Probe::default() };
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut run = ProbeRun::new(&probe, at(0));
        assert!(!run.is_due(at(4)) && run.is_due(at(5)));
        run.begin(&probe, at(5));
        assert!(!run.is_due(at(9)));
        run.record(&probe, true);
        assert!(!run.is_due(at(7)) && run.is_due(at(8)));
    }

    #[test]
    fn ports_go_by_number_or_name() {
        let port = ContainerPort { name: "web".into(), container_port: 8080, protocol: String::new() };
        let container = Container { ports: vec![port], ..Container::default() };
        let check = |port| {
            let http = HttpGet { port, path: "healthz".into(), ..HttpGet::default() };
            ProbeCheck::of(&Probe { http_get: Some(http), ..Probe::default() }, &container)
        };
        let expected = ProbeCheck::Http { port: 8080, tls: false, path: "/healthz".into(), headers: vec![] };
        assert_eq!(check(PortRef::Name("web".into())), expected);
        assert_eq!(check(PortRef::Number(8080)), expected);
        assert!(matches!(check(PortRef::Name("nope".into())), ProbeCheck::Impossible(_)));
    }
}
