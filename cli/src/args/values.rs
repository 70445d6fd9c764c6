//! What options take: durations, addresses, `KEY=VALUE`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    time::Duration,
};

use coracle_objects::validate::syntax::{label_value_faults, qualified_name_faults, subdomain_faults};

const DAY_SECONDS: u64 = 24 * 3600;

/// How long a token may be good: what a control node gives at most.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(3650 * DAY_SECONDS);
/// How long a change of authorities may wait for nodes that are away.
const GRACE_MAX: Duration = Duration::from_secs(365 * DAY_SECONDS);
/// How long a member may be silent before it is dead. Elections take a second or two.
const MEMBER_DEAD: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30 * DAY_SECONDS)];
/// How long a command may wait for objects to go.
const WAIT_MAX: Duration = Duration::from_secs(7 * DAY_SECONDS);

pub fn token_ttl(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(60), TOKEN_TTL_MAX)
}

pub fn grace(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), GRACE_MAX)
}

pub fn member_dead(text: &str) -> Result<Duration, String> {
    let [least, most] = MEMBER_DEAD;
    bounded(text, least, most)
}

pub fn wait(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), WAIT_MAX)
}

/// A time that has passed.
pub fn since(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), TOKEN_TTL_MAX)
}

fn bounded(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    match duration(text)? {
        time if time < least => Err(format!("`{text}` is too short: at least {} is needed", words(least))),
        time if time > most => Err(format!("`{text}` is too long: at most {} is allowed", words(most))),
        time => Ok(time),
    }
}

/// Whole seconds, as 90s, 30m, 24h, 7d or 1h30m.
fn duration(text: &str) -> Result<Duration, String> {
    let mend = || format!("`{text}` is no duration: write numbers and s, m, h or d, as 90s, 24h or 1h30m");
    let too_long = || format!("`{text}` is longer than any duration that is taken");
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(mend)?;
        let (number, behind) = rest.split_at(at);
        let unit = behind.chars().next().ok_or_else(mend)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => DAY_SECONDS,
            _ => return Err(mend()),
        };
        // All digits: what cannot be read is too large.
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(too_long)?;
        rest = &behind[unit.len_utf8()..];
    }
    Ok(Duration::from_secs(total))
}

fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("d", DAY_SECONDS), ("h", 3600), ("m", 60)];
    let unit = units.into_iter().find(|(_, of)| seconds >= *of && seconds.is_multiple_of(*of));
    unit.map_or_else(|| format!("{seconds}s"), |(name, of)| format!("{}{name}", seconds / of))
}

/// A part of a whole, from 0 to 1.
pub fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..=1.0).contains(&part) => Ok(part),
        _ => Err(format!("`{text}` is no part of a whole: write a number from 0 to 1, as 0.01")),
    }
}

/// An address to listen at: `127.0.0.1:6443`, `[::1]:6443`, `localhost:6443`, or `:6443` for all of the machine's.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = host_and_port(text)?;
    if host.is_empty() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    let found = (host, port).to_socket_addrs().map_err(|error| format!("`{host}` is no address: {error}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("`{host}` has no address"))
}

/// Where somebody else listens: `HOST:PORT`, or `:PORT` on this machine.
pub fn remote(text: &str) -> Result<String, String> {
    let (host, port) = host_and_port(text)?;
    if port == 0 {
        return Err(format!("`{text}` has port 0, at which nobody can be reached"));
    }
    Ok(if host.is_empty() { format!("127.0.0.1:{port}") } else { text.to_owned() })
}

/// Under which others reach this process: `HOST:PORT`, `HOST` with the port that is listened at, or `:PORT`.
pub fn advertised(text: &str) -> Result<String, String> {
    let has_port = text.parse::<IpAddr>().is_err() && text.rsplit_once(':').is_some();
    if text.trim().is_empty() || text.contains(char::is_whitespace) {
        return Err(format!("`{text}` is no address: write HOST:PORT"));
    }
    if has_port {
        host_and_port(text)?;
    }
    Ok(text.to_owned())
}

fn host_and_port(text: &str) -> Result<(&str, u16), String> {
    let mend = |what: &str| {
        format!("`{text}` {what}: write HOST:PORT, as 127.0.0.1:6443 or localhost:6443, or :6443")
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((text.rsplit_once(':').map_or(text, |(host, _)| host), address.port()));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| mend("has no port"))?;
    if host.contains(':') {
        return Err(mend("is an IPv6 address without brackets, or none at all"));
    }
    if host.contains(|c: char| c.is_whitespace() || "/@?#[]".contains(c)) {
        return Err(mend("is no address"));
    }
    let port = port.parse::<u16>().map_err(|_| mend("has no port from 0 to 65535"))?;
    Ok((host, port))
}

pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err(format!("`{text}` is not of the form KEY=VALUE")),
    }
}

/// A label that a node may have.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = key_value(text)?;
    let faults = |of: &str, faults: Vec<String>| match faults.first() {
        Some(fault) => Err(format!("`{of}` in `{text}`: {fault}")),
        None => Ok(()),
    };
    faults(&key, qualified_name_faults(&key))?;
    faults(&value, label_value_faults(&value))?;
    Ok((key, value))
}

/// Where a container has environment variables from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvSource {
    ConfigMap(String),
    Secret(String),
}

pub fn env_source(text: &str) -> Result<EnvSource, String> {
    let (kind, name) = text.split_once('/').unwrap_or(("", text));
    if let Some(fault) = subdomain_faults(name).into_iter().next() {
        return Err(format!("{name:?} is no name: {fault}"));
    }
    match kind {
        "configmap" | "configmaps" | "cm" => Ok(EnvSource::ConfigMap(name.to_owned())),
        "secret" | "secrets" => Ok(EnvSource::Secret(name.to_owned())),
        _ => Err(format!("`{text}` is not of the form configmap/NAME or secret/NAME")),
    }
}

/// `KEY=VALUE`, or `KEY` with the value of this process' environment.
pub fn secret(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return key_value(text);
    }
    let value = std::env::var(text).map_err(|_| {
        format!("there is no variable {text} in this shell: set it, or write {text}=VALUE; all that a Secret holds is \
                 --env-from secret/NAME")
    })?;
    Ok((text.to_owned(), value))
}

/// Lines counted from the end; `None` is all of them, which kubectl writes as -1.
pub fn tail(text: &str) -> Result<i64, String> {
    match text.parse::<i64>() {
        Ok(lines) if lines >= -1 => Ok(lines),
        _ => Err(format!("`{text}` is no number of lines: write 0 or more, or -1 for all")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, seconds) in
            [("90m", 5400), ("7d", 604_800), ("1h30m", 5400), ("1d12h", 129_600), ("0s", 0)]
        {
            assert_eq!(duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for bad in ["", "h", "12", "-1h", "1y", "1h30", "1.5h", "1h -2m", "ħ", "1ħ"] {
            assert!(duration(bad).unwrap_err().contains("is no duration"), "{bad}");
        }
        for long in ["99999999999999999999d", "18446744073709551615m", "18446744073709551615s1s"] {
            assert!(duration(long).unwrap_err().contains("is longer than any"), "{long}");
        }
    }

    #[test]
    fn durations_are_bounded_and_the_bound_is_told() {
        assert_eq!(token_ttl("3651d").unwrap_err(), "`3651d` is too long: at most 3650d is allowed");
        assert_eq!(token_ttl("0s").unwrap_err(), "`0s` is too short: at least 1m is needed");
        assert_eq!(member_dead("1s").unwrap_err(), "`1s` is too short: at least 5s is needed");
        assert_eq!(grace("1h30m").unwrap().as_secs(), 5400);
        for bounds in [token_ttl, grace, member_dead, wait, since] {
            assert!(bounds("999999d").unwrap_err().contains("is too long"));
            assert!(bounds("0s").unwrap_err().contains("is too short"));
        }
    }

    #[test]
    fn addresses_may_leave_the_host_out_or_name_it() {
        let at = |text: &str| listen(text).unwrap().to_string();
        assert_eq!(at("127.0.0.1:6443"), "127.0.0.1:6443");
        assert_eq!(at("[::1]:6443"), "[::1]:6443");
        assert_eq!(at("localhost:0"), "127.0.0.1:0");
        assert_eq!(at(":8080"), "0.0.0.0:8080");
        assert_eq!(remote(":6443").unwrap(), "127.0.0.1:6443");
        for fine in ["localhost:6443", "10.0.0.1:6443", "[fd00::1]:6443", "api.example:443"] {
            assert_eq!(remote(fine).unwrap(), fine);
            assert_eq!(advertised(fine).unwrap(), fine);
        }
        for fine in [":7000", "control.example", "fd00::1"] {
            assert_eq!(advertised(fine).unwrap(), fine);
        }
        for bad in ["", "localhost", "127.0.0.1", "a:b", "a:70000", "fd00::1", "https://a:1", "a b:1", "8080"]
        {
            assert!(listen(bad).is_err(), "{bad}");
            assert!(remote(bad).is_err(), "{bad}");
        }
        assert!(remote("a:0").unwrap_err().contains("port 0"));
        assert!(advertised("a:x").is_err() && advertised(" ").is_err());
    }

    #[test]
    fn environment_variables_need_a_name() {
        assert_eq!(key_value("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(key_value("=x").is_err());
        assert!(key_value("x").is_err());
        assert_eq!(env_source("cm/texts"), Ok(EnvSource::ConfigMap("texts".into())));
        assert_eq!(env_source("secret/a.b"), Ok(EnvSource::Secret("a.b".into())));
        for bad in ["texts", "pod/a", "secret/", "secret/A", "cm/a/b"] {
            assert!(env_source(bad).is_err(), "{bad}");
        }
        assert_eq!(secret("A=b").unwrap(), ("A".into(), "b".into()));
        assert!(secret("CORACLE_NO_SUCH_VARIABLE").unwrap_err().contains("in this shell"));
    }

    #[test]
    fn labels_are_such_as_objects_have() {
        assert_eq!(label("example.com/zone=a").unwrap(), ("example.com/zone".into(), "a".into()));
        assert_eq!(label("zone=").unwrap().1, "");
        for bad in ["zone", "=a", "a b=c", "zone=a b", "/zone=a", "A_/zone=a"] {
            assert!(label(bad).is_err(), "{bad}");
        }
    }
}
