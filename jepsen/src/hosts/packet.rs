//! What the switch has to know of a packet: where it goes, and how to damage it.

use std::net::Ipv4Addr;

use rand::Rng;

/// Bytes of an IPv4 head without options, and of a TCP head without.
const IP_HEAD_BYTES: usize = 20;
const TCP_HEAD_BYTES: usize = 20;
/// Protocol number of TCP.
const TCP: u8 = 6;
/// Where the checksum stands in a TCP head.
const TCP_CHECKSUM_AT: usize = 16;

/// Where an IPv4 packet goes.
pub(super) fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let head: &[u8; IP_HEAD_BYTES] = packet.first_chunk()?;
    let address: [u8; 4] = *head.last_chunk()?;
    (head[0] >> 4 == 4).then(|| address.into())
}

/// Flips one bit somewhere: the checksums of IP and TCP find it, and the packet is lost.
pub(super) fn corrupt(packet: &mut [u8], dice: &mut impl Rng) {
    let at = dice.random_range(0..packet.len());
    packet[at] ^= 1 << dice.random_range(0..8);
}

/// Flips one bit of what TCP carries and mends TCP's checksum: what a bad switch does, and nobody below us finds.
/// `false` if the packet carries nothing.
pub(super) fn forge(packet: &mut [u8], dice: &mut impl Rng) -> bool {
    let Some((tcp, payload)) = payload_of(packet) else {
        return false;
    };
    let at = dice.random_range(payload..packet.len());
    // The checksum is a sum of 16-bit words; both heads are multiples of them.
    let word = at & !1;
    let read =
        |packet: &[u8]| u16::from_be_bytes([packet[word], packet.get(word + 1).copied().unwrap_or_default()]);
    let before = read(packet);
    packet[at] ^= 1 << dice.random_range(0..8);
    let after = read(packet);
    let checksum = &mut packet[tcp + TCP_CHECKSUM_AT..][..2];
    let old = u16::from_be_bytes([checksum[0], checksum[1]]);
    checksum.copy_from_slice(&replaced(old, before, after).to_be_bytes());
    true
}

/// Where the TCP head begins, and what it carries.
fn payload_of(packet: &[u8]) -> Option<(usize, usize)> {
    let tcp = usize::from(packet.first()? & 0x0f) * 4;
    if *packet.get(9)? != TCP || tcp < IP_HEAD_BYTES {
        return None;
    }
    let payload = tcp + usize::from(packet.get(tcp + 12)? >> 4) * 4;
    (payload >= tcp + TCP_HEAD_BYTES && payload < packet.len()).then_some((tcp, payload))
}

/// A checksum after one word under it was replaced (RFC 1624).
fn replaced(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = ((folded & 0xffff) + (folded >> 16)).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// A TCP packet from one host to another, with checksums.
    pub(in crate::hosts) fn packet(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IP_HEAD_BYTES + TCP_HEAD_BYTES];
        packet[0] = 0x45;
        packet[9] = TCP;
        packet[12..16].copy_from_slice(&from);
        packet[16..20].copy_from_slice(&to);
        packet[IP_HEAD_BYTES + 12] = 0x50;
        packet.extend_from_slice(payload);
        let sum = sum(&packet);
        packet[IP_HEAD_BYTES + TCP_CHECKSUM_AT..][..2].copy_from_slice(&(!sum).to_be_bytes());
        packet
    }

    /// The sum that TCP wants to be all ones: addresses, protocol, length and everything behind the IP head.
    fn sum(packet: &[u8]) -> u16 {
        let tcp = &packet[IP_HEAD_BYTES..];
        let pseudo = [&packet[12..20], &[0, TCP], &u16::try_from(tcp.len()).unwrap().to_be_bytes()].concat();
        let words = |bytes: &[u8]| -> u64 {
            bytes
                .chunks(2)
                .map(|word| u64::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
                .sum()
        };
        let mut sum = words(&pseudo) + words(tcp);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn a_forged_packet_is_one_bit_off_and_has_the_right_checksum_at_every_length() {
        let mut dice = StdRng::seed_from_u64(1);
        for length in 1..200_u8 {
            let good = packet([10, 77, 0, 1], [10, 77, 0, 2], &(0..length).collect::<Vec<_>>());
            assert_eq!(sum(&good), 0xffff);
            let mut forged = good.clone();
            assert!(forge(&mut forged, &mut dice));
            assert_eq!(sum(&forged), 0xffff, "length {length}");
            let body = IP_HEAD_BYTES + TCP_HEAD_BYTES;
            let flipped: u32 =
                good[body..].iter().zip(&forged[body..]).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(flipped, 1);
        }
    }

    #[test]
    fn a_packet_that_carries_nothing_is_not_forged_and_rubbish_goes_nowhere() {
        let mut dice = StdRng::seed_from_u64(1);
        let mut empty = packet([10, 77, 0, 1], [10, 77, 0, 2], b"");
        assert_eq!(destination(&empty), Some([10, 77, 0, 2].into()));
        assert!(!forge(&mut empty, &mut dice));
        for rubbish in [&[][..], &[0x45; 10], &[0x65; 40]] {
            assert_eq!(destination(rubbish), None);
            assert!(!forge(&mut rubbish.to_vec(), &mut dice));
        }
    }

    #[test]
    fn a_corrupted_packet_has_a_wrong_checksum_or_a_wrong_head() {
        let mut dice = StdRng::seed_from_u64(1);
        let good = packet([10, 77, 0, 1], [10, 77, 0, 2], b"something to say");
        for _ in 0..100 {
            let mut bad = good.clone();
            corrupt(&mut bad, &mut dice);
            assert!(sum(&bad) != 0xffff || bad[..IP_HEAD_BYTES] != good[..IP_HEAD_BYTES]);
        }
    }
}
