//! Addresses beyond the cluster that no pod reaches, whatever egress allows.
//!
//! They are those of who trusts a caller for being near: this machine and its links, the metadata services of clouds,
//! private IPv6 networks; and every form of an IPv6 address that a translator on the way would turn into one of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// Whether an address is one of this machine's. Only those can be bound.
pub(crate) fn is_this_machine(ip: IpAddr) -> bool {
    !is_foreign(&std::net::UdpSocket::bind((ip, 0)))
}

/// Whether an attempt to bind shows that the address is not this machine's. One that failed for another reason, such
/// as want of file descriptors, shows nothing.
fn is_foreign<T>(bound: &io::Result<T>) -> bool {
    matches!(bound, Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_counts_as_this_machine() {
        const TOO_MANY_FILES: i32 = 24;
        assert!(!is_foreign::<()>(&Err(io::Error::from_raw_os_error(TOO_MANY_FILES))));
        assert!(!is_foreign(&Ok(())));
        assert!(is_foreign::<()>(&Err(io::ErrorKind::AddrNotAvailable.into())));
        assert!(
            is_this_machine(Ipv4Addr::LOCALHOST.into())
                && !is_this_machine(Ipv4Addr::new(192, 0, 2, 7).into())
        );
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
