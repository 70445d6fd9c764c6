//! Addresses beyond the cluster that no pod reaches, whatever egress allows.
//!
//! They are those of who trusts a caller for being near: this machine and its links, the metadata services of clouds,
//! private IPv6 networks; and every form of an IPv6 address that a translator on the way would turn into one of them.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long what was found of an address is taken for true by who does not connect to it, and of how many addresses.
const KNOWN_FOR: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 4096;

/// Where clouds tell a machine its credentials, beside the link-local 169.254.169.254 and the unique-local fd00:ec2::254:
/// Azure's host agent, Alibaba's and Oracle's metadata services.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

/// Whether an address is closed by what it is. Where it carries an IPv4 address, [`carried`] says which, and that one is
/// to be judged as well.
pub(crate) fn is_closed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_closed_v4(ip),
        IpAddr::V6(ip) => is_closed_v6(ip),
    }
}

/// The IPv4 address that an IPv6 address leads to: mapped, translated, by NAT64, 6to4 or ISATAP.
pub(crate) fn carried(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => Some(v4_of(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4_of(high, low)),
        [0x2002, high, low, ..] => Some(v4_of(high, low)),
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(v4_of(high, low)),
        _ => None,
    }
}

fn is_closed_v4(ip: Ipv4Addr) -> bool {
    let first = ip.octets()[0];
    ip.is_loopback()
        || ip.is_link_local()
        || first == 0
        // Multicast, reserved and broadcast.
        || first >= 224
        || METADATA.contains(&ip)
}

fn is_closed_v6(ip: Ipv6Addr) -> bool {
    let is_kind = match ip.segments() {
        // Unspecified, loopback and the deprecated form that ends in an IPv4 address.
        [0, 0, 0, 0, 0, 0, ..] => true,
        // NAT64 by a prefix of the local network, and discard-only.
        [0x64, 0xff9b, 1, ..] | [0x100, 0, 0, 0, ..] => true,
        // Teredo: where it leads is hidden in it.
        [0x2001, 0, ..] => true,
        // Unique-local fc00::/7, link-local fe80::/10, the former site-local fec0::/10, multicast ff00::/8.
        [first, ..] => first & 0xfe00 == 0xfc00 || first & 0xff80 == 0xfe80 || first & 0xff00 == 0xff00,
    };
    is_kind || carried(ip.into()).is_some_and(is_closed_v4)
}

fn v4_of(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))
}

/// Whether an address is one of this machine's, at this moment. What cannot be told counts as that.
pub(crate) fn is_this_machine(ip: IpAddr) -> bool {
    look(ip).unwrap_or(true)
}

/// The same as of at most [`KNOWN_FOR`] ago, for those who ask it of many addresses again and again, and open nothing by it.
pub(crate) fn was_this_machine(ip: IpAddr) -> bool {
    static KNOWN: LazyLock<Known> = LazyLock::new(Known::default);
    KNOWN.is_this_machine(ip, Instant::now(), look)
}

/// Whether an address is this machine's: only those can be bound.
fn look(ip: IpAddr) -> Option<bool> {
    told_by(&std::net::UdpSocket::bind((ip, 0)))
}

/// What an attempt to bind shows. One that failed for another reason, such as want of file descriptors, shows nothing.
fn told_by<T>(bound: &io::Result<T>) -> Option<bool> {
    match bound {
        Ok(_) => Some(true),
        Err(error) => (error.kind() == io::ErrorKind::AddrNotAvailable).then_some(false),
    }
}

/// What was found of addresses a moment ago.
#[derive(Default)]
struct Known {
    found: Mutex<Option<Found>>,
}

struct Found {
    since: Instant,
    is_this_machine: HashMap<IpAddr, bool>,
}

impl Found {
    fn holds(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < KNOWN_FOR && self.is_this_machine.len() < KNOWN_MAX
    }
}

impl Known {
    fn is_this_machine(&self, ip: IpAddr, now: Instant, look: impl Fn(IpAddr) -> Option<bool>) -> bool {
        let known = {
            let found = self.found.lock();
            found
                .as_ref()
                .filter(|found| found.holds(now))
                .and_then(|found| found.is_this_machine.get(&ip).copied())
        };
        if let Some(known) = known {
            return known;
        }
        let Some(seen) = look(ip) else { return true };
        let mut found = self.found.lock();
        let found = match &mut *found {
            Some(found) if found.holds(now) => found,
            old => old.insert(Found { since: now, is_this_machine: HashMap::new() }),
        };
        found.is_this_machine.insert(ip, seen);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_cannot_be_told_counts_as_this_machine() {
        const TOO_MANY_FILES: i32 = 24;
        assert_eq!(told_by::<()>(&Err(io::Error::from_raw_os_error(TOO_MANY_FILES))), None);
        assert_eq!(told_by(&Ok(())), Some(true));
        assert_eq!(told_by::<()>(&Err(io::ErrorKind::AddrNotAvailable.into())), Some(false));
        for is_this_machine in [is_this_machine, was_this_machine] {
            assert!(is_this_machine(Ipv4Addr::LOCALHOST.into()));
            assert!(!is_this_machine(Ipv4Addr::new(198, 51, 100, 7).into()));
        }
        let known = Known::default();
        assert!(known.is_this_machine(Ipv4Addr::new(198, 51, 100, 7).into(), Instant::now(), |_| None));
        assert!(known.found.lock().is_none(), "and is looked up again");
    }

    #[test]
    fn what_is_asked_again_and_again_is_looked_up_once_a_second() {
        let (known, looks, begun) = (Known::default(), Cell::new(0), Instant::now());
        let ask = |number: u32, at: Duration, is_own: bool| {
            known.is_this_machine(Ipv4Addr::from_bits(number).into(), begun + at, |_| {
                looks.set(looks.get() + 1);
                Some(is_own)
            })
        };
        for _ in 0..1000 {
            assert!(!ask(1, Duration::ZERO, false) && ask(2, Duration::ZERO, true));
        }
        assert!(!ask(1, KNOWN_FOR - Duration::from_millis(1), true));
        assert_eq!(looks.get(), 2);
        assert!(ask(1, KNOWN_FOR, true), "one that became this machine's is known within a second");
        for number in 0..3 * KNOWN_MAX as u32 {
            ask(number, KNOWN_FOR, false);
        }
        let found = known.found.lock();
        assert!(found.as_ref().is_some_and(|found| found.is_this_machine.len() <= KNOWN_MAX));
    }

    #[test]
    fn near_addresses_are_closed_in_every_form() {
        let is_closed = |text: &str| is_closed(text.parse().unwrap());
        for closed in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "168.63.129.16",
            "100.100.100.200",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "2001:0:1:2:3:4:5:6",
            "2a00:1450::5efe:a9fe:a9fe",
            "100::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_closed(closed), "{closed}");
        }
        for open in [
            "198.51.100.1",
            "192.168.7.7",
            "10.1.2.3",
            "2001:db8::1",
            "2a00:1450::1",
            "::ffff:198.51.100.1",
            "64:ff9b::c633:6401",
            "2002:c633:6401::1",
        ] {
            assert!(!is_closed(open), "{open}");
        }
    }
}
