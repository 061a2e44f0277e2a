//! Which addresses are nobody's business but the host's own network.
//!
//! A name that was granted may lead anywhere: its owner can point it at the host's loopback, at a neighbour in the
//! data centre or at a cloud's metadata service. So the addresses are looked at after the name was resolved, and
//! the connection goes to an address that was looked at, not to the name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not one of the public internet; `None` for those that are. Says it with its article, for a
/// sentence.
pub(crate) fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    }
}

/// Whether no host can have this address, so that even a grant for private addresses does not reach it.
pub(crate) fn is_nobody(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_unspecified() || address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_multicast()
                || embedded_v4(address).is_some_and(|inner| is_nobody(IpAddr::V4(inner)))
        }
    }
}

fn v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0, ..) => Some("an unspecified"),
        (127, ..) => Some("a loopback"),
        (169, 254, _) => Some("a link-local"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("a private"),
        // Shared address space between a provider and its customers.
        (100, 64..=127, _) => Some("a private"),
        // Special protocol assignments, and benchmarks of network devices.
        (192, 0, 0) | (198, 18..=19, _) => Some("a reserved"),
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Some("a documentation"),
        (224..=239, ..) => Some("a multicast"),
        (240.., ..) => Some("a reserved"),
        _ => None,
    }
}

fn v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(inner) = embedded_v4(address) {
        // `::1` and `::` look like embedded addresses, too, and are caught below.
        return v4(inner);
    }
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback"),
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified"),
        [first, ..] if first & 0xfe00 == 0xfc00 => Some("a private"),
        [first, ..] if first & 0xffc0 == 0xfe80 => Some("a link-local"),
        [first, ..] if first & 0xffc0 == 0xfec0 => Some("a private"),
        [first, ..] if first & 0xff00 == 0xff00 => Some("a multicast"),
        // Only 2000::/3 has been given out; the rest is translators, site prefixes and whatever comes next.
        [first, ..] if first & 0xe000 != 0x2000 => Some("a reserved"),
        // Special protocol assignments; Teredo, a tunnel to any IPv4 address, is one of them.
        [0x2001, second, ..] if second < 0x200 => Some("a reserved"),
        [0x2001, 0xdb8, ..] => Some("a documentation"),
        [0x3fff, second, ..] if second < 0x1000 => Some("a documentation"),
        _ => None,
    }
}

/// The IPv4 address that a translator or tunnel would take an IPv6 address to.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let join = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        // `::ffff:a.b.c.d`, mapped
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(join(high, low)),
        // `::a.b.c.d`, the deprecated compatible form
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(join(high, low)),
        // `::ffff:0:a.b.c.d`, SIIT
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(join(high, low)),
        // `64:ff9b::a.b.c.d`, NAT64
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        // `2002:a.b.c.d::`, 6to4
        [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{is_nobody, not_public};

    #[test]
    fn inside_addresses_are_told_from_public_ones_in_every_spelling() {
        let table = [
            ("127.0.0.1", Some("a loopback")),
            ("127.255.0.9", Some("a loopback")),
            ("0.0.0.0", Some("an unspecified")),
            ("0.1.2.3", Some("an unspecified")),
            ("10.1.2.3", Some("a private")),
            ("172.16.0.1", Some("a private")),
            ("172.32.0.1", None),
            ("192.168.1.1", Some("a private")),
            ("100.64.0.1", Some("a private")),
            ("100.128.0.1", None),
            ("169.254.169.254", Some("a link-local")),
            ("198.18.0.1", Some("a reserved")),
            ("224.0.0.1", Some("a multicast")),
            ("255.255.255.255", Some("a reserved")),
            ("8.8.8.8", None),
            ("::1", Some("a loopback")),
            ("::", Some("an unspecified")),
            ("fe80::1", Some("a link-local")),
            ("fd12::1", Some("a private")),
            ("ff02::1", Some("a multicast")),
            ("::ffff:127.0.0.1", Some("a loopback")),
            ("::ffff:169.254.169.254", Some("a link-local")),
            ("::127.0.0.1", Some("a loopback")),
            ("64:ff9b::10.0.0.1", Some("a private")),
            ("2002:7f00:1::", Some("a loopback")),
            ("::ffff:0:127.0.0.1", Some("a loopback")),
            ("::ffff:0:10.0.0.1", Some("a private")),
            ("2002:a00:1::", Some("a private")),
            ("2002:808:808::", None),
            ("::5", Some("a reserved")),
            ("64:ff9b:1::a00:1", Some("a reserved")),
            ("100::1", Some("a reserved")),
            ("1fff:ffff::1", Some("a reserved")),
            ("4000::1", Some("a reserved")),
            ("5f00::1", Some("a reserved")),
            ("2001::1", Some("a reserved")),
            ("2001:0:7f00:1::", Some("a reserved")),
            ("2001:1ff::1", Some("a reserved")),
            ("2001:200::1", None),
            ("2001:db8::1", Some("a documentation")),
            ("2001:4860:4860::8888", None),
            ("3fff:fff::1", Some("a documentation")),
            ("3fff:1000::1", None),
            ("2606:4700::1111", None),
            ("::ffff:8.8.8.8", None),
        ];
        for (address, expected) in table {
            assert_eq!(not_public(address.parse().expect("an address")), expected, "{address}");
        }
    }

    #[test]
    fn nobody_has_a_multicast_address() {
        for (address, expected) in
            [("224.0.0.1", true), ("::", true), ("::ffff:0.0.0.0", true), ("127.0.0.1", false), ("fe80::1", false)]
        {
            assert_eq!(is_nobody(address.parse().expect("an address")), expected, "{address}");
        }
    }
}
