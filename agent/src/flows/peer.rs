//! What stands in the label `peer`: the remote address, or what `--flows.peer` and `--flows.peer-range` make of it. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use clap::ValueEnum;
use ipnet::IpNet;

use crate::metrics::written_bytes;

/// How much of an address is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerMode {
    /// All of it
    Address,
    /// The network of --flows.peer-prefix-v4 or --flows.peer-prefix-v6 that it is in
    Prefix,
    /// What kind of address it is: loopback, link-local, private, multicast or public
    Class,
    /// Nothing
    None,
}

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// This host (127.0.0.0/8, ::1).
    Loopback,
    /// This link (169.254.0.0/16, fe80::/10).
    LinkLocal,
    /// Not routed in the internet (RFC 1918, RFC 6598, fc00::/7).
    Private,
    /// Many hosts (224.0.0.0/4, ff00::/8, and the limited broadcast address).
    Multicast,
    /// Everything else.
    Public,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 5] =
        [Self::Loopback, Self::LinkLocal, Self::Private, Self::Multicast, Self::Public];

    /// The class of an address that is no IPv4-mapped one.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                match (a, b) {
                    (127, _) => Self::Loopback,
                    (169, 254) => Self::LinkLocal,
                    (10, _) | (172, 16..=31) | (192, 168) | (100, 64..=127) => Self::Private,
                    (224..=239, _) => Self::Multicast,
                    _ if v4.is_broadcast() => Self::Multicast,
                    _ => Self::Public,
                }
            }
            IpAddr::V6(v6) => match v6.segments()[0] {
                _ if v6.is_loopback() => Self::Loopback,
                0xfe80..=0xfebf => Self::LinkLocal,
                0xfc00..=0xfdff => Self::Private,
                0xff00.. => Self::Multicast,
                _ => Self::Public,
            },
        }
    }

    /// Its name in the label `peer`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Private => "private",
            Self::Multicast => "multicast",
            Self::Public => "public",
        }
    }
}

/// A name for all addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// What is shown.
    pub name: String,
    /// Where it is shown.
    pub network: IpNet,
}

/// Longest name of a range, in bytes.
pub const RANGE_NAME_BYTES: usize = 64;

/// What the label `peer` says of a socket that does not say whom it talks to.
pub const UNKNOWN: &str = "unknown";
/// What it says of everything without a row.
pub const OTHER: &str = "other";
/// How it begins for what rows held that left.
pub const DEPARTED: &str = "departed-";

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, network) =
            text.split_once('=').ok_or("give it as NAME=NETWORK, such as office=192.0.2.0/24")?;
        let network: IpNet = network
            .parse()
            .map_err(|_| format!("`{network}` is no network; give it as 192.0.2.0/24 or 2001:db8::/32"))?;
        if network.trunc() != network {
            return Err(format!("{network} has bits behind its prefix; the network is {}", network.trunc()));
        }
        if let IpNet::V6(v6) = network
            && v6.prefix_len() >= 96
            && v6.network().to_ipv4_mapped().is_some()
        {
            return Err(format!("{network} is IPv4 inside IPv6, which is shown as IPv4: give it as such"));
        }
        // One label must not be made in two ways.
        let means_else = [UNKNOWN, OTHER].contains(&name)
            || name.starts_with(DEPARTED)
            || Class::ALL.iter().any(|class| class.name() == name)
            || name.parse::<IpAddr>().is_ok()
            || name.parse::<IpNet>().is_ok();
        if name.is_empty() || name.len() > RANGE_NAME_BYTES || means_else {
            return Err(format!(
                "`{name}` is no name for a range: give 1 to {RANGE_NAME_BYTES} bytes that are no address, no class, and not \
                 {UNKNOWN}, {OTHER} or {DEPARTED}..."
            ));
        }
        Ok(Self { name: name.to_owned(), network })
    }
}

/// The remote end of a flow, as far as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Its address.
    Address(IpAddr),
    /// Its network.
    Prefix(IpNet),
    /// The ranges with the name of this number.
    Range(u32),
    /// What kind of address it has.
    Class(Class),
    /// Whoever it is.
    Anyone,
    /// A socket that is not connected does not say whom it talks to.
    Unknown,
}

/// How peers are named.
#[derive(Clone, Debug)]
pub struct Peers {
    mode: PeerMode,
    prefix_v4: u8,
    prefix_v6: u8,
    /// Networks, longest prefix first, with the number of their name.
    ranges: Vec<(IpNet, u32)>,
    names: Vec<String>,
    loopback: bool,
}

impl Peers {
    /// Names by the longest of the `ranges` that holds an address, else by `mode`. Without `loopback` flows with this host
    /// itself get no row.
    ///
    /// # Errors
    /// When two ranges are the same network, or a prefix is longer than an address.
    pub fn new(
        mode: PeerMode,
        [prefix_v4, prefix_v6]: [u8; 2],
        mut ranges: Vec<Range>,
        loopback: bool,
    ) -> Result<Self, String> {
        if prefix_v4 > 32 || prefix_v6 > 128 {
            return Err(format!(
                "a prefix is at most 32 bits in IPv4 and 128 in IPv6, not {prefix_v4} and {prefix_v6}"
            ));
        }
        ranges.sort_by_key(|range| (std::cmp::Reverse(range.network.prefix_len()), range.network));
        for pair in ranges.windows(2) {
            if pair[0].network == pair[1].network {
                let [a, b] = [&pair[0], &pair[1]];
                return Err(format!("{} is both {} and {} (--flows.peer-range)", a.network, a.name, b.name));
            }
        }
        let mut names: Vec<String> = Vec::new();
        let numbered = ranges.into_iter().map(|Range { name, network }| {
            let number = names.iter().position(|other| *other == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            (network, number as u32)
        });
        let ranges = numbered.collect();
        Ok(Self { mode, prefix_v4, prefix_v6, ranges, names, loopback })
    }

    /// Names by address alone.
    pub const fn addresses() -> Self {
        Self {
            mode: PeerMode::Address,
            prefix_v4: 32,
            prefix_v6: 128,
            ranges: Vec::new(),
            names: Vec::new(),
            loopback: true,
        }
    }

    /// The peer with the address that a kernel row has; `None` when its flow gets no row.
    pub fn of(&self, address: [u8; 16]) -> Option<Peer> {
        let address = Ipv6Addr::from(address).to_canonical();
        if address.is_unspecified() {
            return Some(Peer::Unknown);
        }
        if !self.loopback && Class::of(address) == Class::Loopback {
            return None;
        }
        if let Some((_, name)) = self.ranges.iter().find(|(network, _)| network.contains(&address)) {
            return Some(Peer::Range(*name));
        }
        Some(match self.mode {
            PeerMode::Address => Peer::Address(address),
            PeerMode::Prefix => {
                let bits = if address.is_ipv4() { self.prefix_v4 } else { self.prefix_v6 };
                IpNet::new(address, bits)
                    .map_or(Peer::Address(address), |network| Peer::Prefix(network.trunc()))
            }
            PeerMode::Class => Peer::Class(Class::of(address)),
            PeerMode::None => Peer::Anyone,
        })
    }

    /// The value of the label `peer`.
    pub fn label(&self, peer: Peer) -> impl fmt::Display {
        PeerLabel { peers: self, peer }
    }

    /// The longest value of the label `peer`, in bytes as written.
    pub fn longest_label(&self) -> usize {
        let by_mode = match self.mode {
            // Eight groups of four digits; addresses with an IPv4 part are shorter.
            PeerMode::Address => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".len(),
            PeerMode::Prefix => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".len(),
            PeerMode::Class => Class::ALL.iter().map(|class| class.name().len()).max().unwrap_or(0),
            PeerMode::None => 0,
        };
        let names = self.names.iter().map(|name| written_bytes(name));
        names.chain([by_mode, UNKNOWN.len(), OTHER.len(), DEPARTED.len() + NUMBER_BYTES]).max().unwrap_or(0)
    }
}

/// Digits of the largest number.
const NUMBER_BYTES: usize = 20;

struct PeerLabel<'a> {
    peers: &'a Peers,
    peer: Peer,
}

impl fmt::Display for PeerLabel<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Peer::Address(address) => address.fmt(out),
            Peer::Prefix(network) => network.fmt(out),
            Peer::Range(number) => self.peers.names[number as usize].fmt(out),
            Peer::Class(class) => class.name().fmt(out),
            Peer::Anyone => Ok(()),
            Peer::Unknown => UNKNOWN.fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(address: &str) -> [u8; 16] {
        match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    fn peers(mode: PeerMode, ranges: &[&str]) -> Peers {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Peers::new(mode, [24, 48], ranges, true).unwrap()
    }

    fn label(peers: &Peers, address: &str) -> String {
        peers.of(bytes(address)).map_or("no row".into(), |peer| peers.label(peer).to_string())
    }

    #[test]
    fn an_address_is_shown_as_the_mode_says() {
        for (address, prefix, class) in [
            ("192.0.2.77", "192.0.2.0/24", "public"),
            ("::ffff:192.0.2.77", "192.0.2.0/24", "public"),
            ("127.0.0.53", "127.0.0.0/24", "loopback"),
            ("::1", "::/48", "loopback"),
            ("169.254.169.254", "169.254.169.0/24", "link-local"),
            ("fe80::1", "fe80::/48", "link-local"),
            ("febf::1", "febf::/48", "link-local"),
            ("10.1.2.3", "10.1.2.0/24", "private"),
            ("172.15.0.1", "172.15.0.0/24", "public"),
            ("172.16.0.1", "172.16.0.0/24", "private"),
            ("172.31.255.255", "172.31.255.0/24", "private"),
            ("172.32.0.1", "172.32.0.0/24", "public"),
            ("192.168.1.1", "192.168.1.0/24", "private"),
            ("100.64.0.1", "100.64.0.0/24", "private"),
            ("100.128.0.1", "100.128.0.0/24", "public"),
            ("fd00:1:2:3::4", "fd00:1:2::/48", "private"),
            ("224.0.0.251", "224.0.0.0/24", "multicast"),
            ("255.255.255.255", "255.255.255.0/24", "multicast"),
            ("ff02::fb", "ff02::/48", "multicast"),
            ("2001:db8:1:2::3", "2001:db8:1::/48", "public"),
        ] {
            assert_eq!(label(&peers(PeerMode::Prefix, &[]), address), prefix, "{address}");
            assert_eq!(label(&peers(PeerMode::Class, &[]), address), class, "{address}");
            assert_eq!(label(&peers(PeerMode::None, &[]), address), "", "{address}");
            let whole = address.strip_prefix("::ffff:").unwrap_or(address);
            assert_eq!(label(&peers(PeerMode::Address, &[]), address), whole);
        }
    }

    #[test]
    fn no_address_is_unknown_in_every_mode_and_both_families() {
        for mode in [PeerMode::Address, PeerMode::Prefix, PeerMode::Class, PeerMode::None] {
            for address in ["::", "0.0.0.0"] {
                let peers = peers(mode, &["all=0.0.0.0/0", "six=::/0"]);
                assert_eq!(label(&peers, address), "unknown");
            }
        }
    }

    #[test]
    fn the_longest_range_names_an_address_in_every_mode() {
        let ranges = [
            "ten=10.0.0.0/8",
            "office=10.1.0.0/16",
            "desk=10.1.2.3/32",
            "docs=2001:db8::/32",
            "v4=0.0.0.0/0",
        ];
        for mode in [PeerMode::Address, PeerMode::Prefix, PeerMode::Class, PeerMode::None] {
            let peers = peers(mode, &ranges);
            for (address, name) in [
                ("10.1.2.3", "desk"),
                ("::ffff:10.1.2.3", "desk"),
                ("10.1.2.4", "office"),
                ("10.2.0.1", "ten"),
                ("11.0.0.1", "v4"),
                ("2001:db8::1", "docs"),
            ] {
                assert_eq!(label(&peers, address), name, "{address} {mode:?}");
            }
        }
        assert_eq!(label(&peers(PeerMode::Address, &ranges), "2001:db9::1"), "2001:db9::1");
    }

    #[test]
    fn two_networks_of_one_name_are_one_peer() {
        let peers =
            peers(PeerMode::Address, &["office=10.0.0.0/8", "home=10.2.0.0/16", "office=192.168.0.0/16"]);
        assert_eq!(peers.of(bytes("10.0.0.1")), peers.of(bytes("192.168.0.1")));
        assert_ne!(peers.of(bytes("10.0.0.1")), peers.of(bytes("10.2.0.1")));
    }

    #[test]
    fn without_loopback_only_this_host_has_no_row() {
        let ranges = vec!["self=127.0.0.0/8".parse().unwrap()];
        let peers = Peers::new(PeerMode::Address, [24, 64], ranges, false).unwrap();
        assert_eq!(label(&peers, "127.0.0.1"), "no row", "a name does not bring it back");
        assert_eq!(label(&peers, "::1"), "no row");
        assert_eq!(label(&peers, "0.0.0.0"), "unknown");
        assert_eq!(label(&peers, "10.0.0.1"), "10.0.0.1");
    }

    #[test]
    fn wrong_ranges_are_refused_with_what_is_wrong() {
        for (text, why) in [
            ("192.0.2.0/24", "NAME=NETWORK"),
            ("a=192.0.2.0", "is no network"),
            ("a=nowhere/8", "is no network"),
            ("a=192.0.2.0/33", "is no network"),
            ("a=192.0.2.1/24", "the network is 192.0.2.0/24"),
            ("a=::ffff:192.0.2.0/120", "give it as such"),
            ("=192.0.2.0/24", "no name for a range"),
            ("other=192.0.2.0/24", "no name for a range"),
            ("unknown=192.0.2.0/24", "no name for a range"),
            ("departed-1=192.0.2.0/24", "no name for a range"),
            ("public=192.0.2.0/24", "no name for a range"),
            ("192.0.2.1=192.0.2.0/24", "no name for a range"),
            ("10.0.0.0/8=192.0.2.0/24", "no name for a range"),
        ] {
            let error = text.parse::<Range>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(format!("{}=::/0", "x".repeat(65)).parse::<Range>().is_err());
        let twice = ["a=192.0.2.0/24", "b=192.0.2.0/24"].map(|range| range.parse().unwrap()).to_vec();
        let error = Peers::new(PeerMode::Address, [24, 64], twice, true).unwrap_err();
        assert!(error.contains("192.0.2.0/24 is both a and b"), "{error}");
        assert!(Peers::new(PeerMode::Prefix, [33, 64], Vec::new(), true).is_err());
    }

    proptest! {
        #[test]
        fn a_label_is_never_longer_than_said_and_never_one_that_means_something_else(
            address: [u8; 16],
            mapped: bool,
            mode in prop::sample::select(vec![PeerMode::Address, PeerMode::Prefix, PeerMode::Class, PeerMode::None]),
            prefixes in (0u8..=32, 0u8..=128),
        ) {
            let mut address = address;
            if mapped {
                address[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
            }
            let range = "a-name-of-some-length=2000::/3".parse().unwrap();
            let peers = Peers::new(mode, prefixes.into(), vec![range], true).unwrap();
            let label = peers.label(peers.of(address).unwrap()).to_string();
            prop_assert!(label.len() <= peers.longest_label(), "{label}");
            prop_assert!(label != OTHER && !label.starts_with(DEPARTED));
        }
    }
}
