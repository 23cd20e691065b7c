//! Classic BPF programs (`linux/filter.h`) that let frames about some addresses through, and no others: the agent is not
//! woken for the rest of a LAN's ARP.

use std::net::{Ipv4Addr, Ipv6Addr};

use socket2::SockFilter;

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_LD | BPF_B | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K`.
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `BPF_MAXINSNS`.
const MOST: usize = 4096;
/// What is let through comes whole.
const WHOLE: u32 = 0x4_0000;

/// Offsets in an Ethernet frame: sender and target of ARP (RFC 826); next header of IPv6, type and target of ICMPv6
/// neighbour discovery (RFC 4861 4.3).
const ARP_SENDER: u32 = 28;
const ARP_TARGET: u32 = 38;
const IPV6_NEXT: u32 = 20;
const ICMP6_TYPE: u32 = 54;
const ND_TARGET: u32 = 62;
const ICMP6: u32 = 58;
const SOLICITATION: u32 = 135;
const ADVERTISEMENT: u32 = 136;

/// `SKF_AD_OFF + SKF_AD_IFINDEX` and `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`: what the kernel knows beside the bytes.
const INTERFACE: u32 = 0xffff_f008;
const TAGGED: u32 = 0xffff_f030;

fn load(code: u16, offset: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, offset)
}

/// Goes on behind the next `skip` instructions unless the value is `k`.
fn unless_equal(k: u32, skip: u8) -> SockFilter {
    SockFilter::new(JUMP_EQUAL, 0, skip, k)
}

fn end(bytes: u32) -> SockFilter {
    SockFilter::new(RETURN, 0, 0, bytes)
}

/// What came in on another interface above this one, as those of VLANs are, and what is of a VLAN without an interface, ends
/// here.
fn of_interface(index: u32) -> [SockFilter; 6] {
    [
        load(LOAD_WORD, INTERFACE),
        SockFilter::new(JUMP_EQUAL, 1, 0, index),
        end(0),
        load(LOAD_WORD, TAGGED),
        SockFilter::new(JUMP_EQUAL, 1, 0, 0),
        end(0),
    ]
}

/// Nothing.
pub(super) fn nothing() -> Vec<SockFilter> {
    vec![end(0)]
}

/// ARP that asks for, or says something of, one of the addresses. All ARP where they are too many for a program.
pub(super) fn arp(index: u32, addresses: &[Ipv4Addr]) -> Vec<SockFilter> {
    let mut program = Vec::from(of_interface(index));
    let head = program.len();
    for offset in [ARP_TARGET, ARP_SENDER] {
        program.push(load(LOAD_WORD, offset));
        for address in addresses {
            program.extend([unless_equal(u32::from(*address), 1), end(WHOLE)]);
        }
    }
    program.push(end(0));
    fitting(program, head)
}

/// Neighbour solicitations and advertisements about one of the addresses; about all where they are too many.
pub(super) fn ndp(index: u32, addresses: &[Ipv6Addr]) -> Vec<SockFilter> {
    let mut program = Vec::from(of_interface(index));
    program.extend([
        load(LOAD_BYTE, IPV6_NEXT),
        unless_equal(ICMP6, 3),
        load(LOAD_BYTE, ICMP6_TYPE),
        SockFilter::new(JUMP_EQUAL, 2, 0, SOLICITATION),
        SockFilter::new(JUMP_EQUAL, 1, 0, ADVERTISEMENT),
        end(0),
    ]);
    let head = program.len();
    for address in addresses {
        // The last word first: it is the one that differs.
        for word in (0..4_u32).rev() {
            let at = 4 * word as usize;
            let value = u32::from_be_bytes(address.octets()[at..at + 4].try_into().unwrap_or_default());
            let rest = u8::try_from(2 * word + 1).unwrap_or(u8::MAX);
            program.extend([load(LOAD_WORD, ND_TARGET + 4 * word), unless_equal(value, rest)]);
        }
        program.push(end(WHOLE));
    }
    program.push(end(0));
    fitting(program, head)
}

/// A program that is too long ends behind its head, and lets all through.
fn fitting(mut program: Vec<SockFilter>, head: usize) -> Vec<SockFilter> {
    if program.len() > MOST {
        program.truncate(head);
        program.push(end(WHOLE));
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_never_longer_than_the_kernel_takes() {
        let four = |n: u32| (0..n).map(Ipv4Addr::from).collect::<Vec<_>>();
        let six = |n: u128| (0..n).map(Ipv6Addr::from).collect::<Vec<_>>();
        assert_eq!(arp(1, &four(2)).len(), 17);
        assert_eq!(arp(1, &four(1021)).len(), 4093);
        assert_eq!(arp(1, &four(1022)).len(), 7);
        assert_eq!(ndp(1, &six(2)).len(), 31);
        assert_eq!(ndp(1, &six(453)).len(), 4090);
        assert_eq!(ndp(1, &six(454)).len(), 13);
    }
}
