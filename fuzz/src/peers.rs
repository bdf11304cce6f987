//! What operators write for peers, and what is shown of addresses.

use std::net::{IpAddr, Ipv6Addr};

use siskin::flows::peer::{DEPARTED, OTHER, Peer, PeerMode, Peers, RANGE_NAME_BYTES, Range, UNKNOWN};

const MODES: [PeerMode; 4] = [PeerMode::Address, PeerMode::Prefix, PeerMode::Class, PeerMode::None];

/// The first bytes are a mode, prefix lengths and an address, the rest is ranges, one on a line. Those that are accepted mean what
/// they say, and every address has a label that is as short as promised and could not come from something else.
pub fn peers(data: &[u8]) {
    let Some(([mode, v4, v6, octets @ ..], text)) = data.split_first_chunk::<19>() else { return };
    let text = String::from_utf8_lossy(text);
    let ranges: Vec<Range> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for Range { name, network } in &ranges {
        assert!((1..=RANGE_NAME_BYTES).contains(&name.len()) && name != UNKNOWN && name != OTHER);
        assert!(!name.starts_with(DEPARTED) && name.parse::<IpAddr>().is_err());
        let again = format!("{name}={network}").parse();
        assert_eq!(again, Ok(Range { name: name.clone(), network: *network }));
    }
    let mode = MODES[usize::from(*mode) % MODES.len()];
    let peers = Peers::new(mode, [*v4, *v6], ranges.clone(), true);
    let networks: std::collections::HashSet<_> = ranges.iter().map(|range| range.network).collect();
    assert_eq!(peers.is_ok(), *v4 <= 32 && *v6 <= 128 && networks.len() == ranges.len());
    let Ok(peers) = peers else { return };

    let mut octets = *octets;
    shown(&peers, &ranges, octets);
    // The same address as a socket of the other family has it.
    octets[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    shown(&peers, &ranges, octets);
}

fn shown(peers: &Peers, ranges: &[Range], octets: [u8; 16]) {
    let address = Ipv6Addr::from(octets).to_canonical();
    let peer = peers.of(octets).unwrap_or_else(|| panic!("{address} has no row"));
    let label = peers.label(peer).to_string();
    assert!(
        label.len() <= peers.longest_label() && label != OTHER && !label.starts_with(DEPARTED),
        "{label}"
    );
    assert_eq!(label == UNKNOWN, address.is_unspecified());
    let longest = ranges
        .iter()
        .filter(|range| is_inside(address, range.network.addr(), range.network.prefix_len()))
        .max_by_key(|range| range.network.prefix_len());
    match (peer, longest) {
        (Peer::Unknown, _) => {}
        (Peer::Range(_), longest) => assert_eq!(Some(&label), longest.map(|range| &range.name)),
        (other, longest) => assert!(longest.is_none(), "{other:?} although {longest:?}"),
    }
    match peer {
        Peer::Address(shown) => assert_eq!((shown, label.parse()), (address, Ok(address))),
        Peer::Prefix(network) => assert!(is_inside(address, network.addr(), network.prefix_len())),
        _ => {}
    }
}

/// Whether the first bits of two addresses of one family are the same.
fn is_inside(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (a, b): (Vec<u8>, Vec<u8>) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().into(), b.octets().into()),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().into(), b.octets().into()),
        _ => return false,
    };
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    (0..usize::from(bits)).all(|at| bit(&a, at) == bit(&b, at))
}
