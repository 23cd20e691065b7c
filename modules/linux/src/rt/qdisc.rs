//! A token bucket in front of a link (`linux/pkt_sched.h`, `tbf`): what leaves it goes no faster than a rate.

use crate::netlink::{Attributes, Message, NetlinkError, Socket, flag, ne_u32, rtm, text};

const TCMSG: usize = 20;
const ROOT: u32 = u32::MAX;
/// `1:`
const HANDLE: u32 = 1 << 16;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes what a packet costs, and wants no table.
const ETHERNET: u8 = 1;

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

fn header(index: u32, handle: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&ROOT.to_ne_bytes());
    header
}

/// Puts a bucket in front of a link, instead of what is there.
pub(crate) fn set_bucket(socket: &mut Socket, index: u32, bucket: &Bucket) -> Result<(), NetlinkError> {
    let mut message = Message::new(rtm::NEWQDISC, flag::CREATE | flag::REPLACE, &header(index, HANDLE));
    // struct tc_tbf_qopt: two of struct tc_ratespec (the second is a peak rate, unused), limit, buffer, mtu.
    let mut parms = [0; 36];
    parms[1] = ETHERNET;
    let low = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    parms[8..12].copy_from_slice(&low.to_ne_bytes());
    parms[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
    message.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, |m| {
        m.bytes(TCA_TBF_PARMS, &parms).u32(TCA_TBF_BURST, bucket.burst);
        if bucket.rate >= u64::from(u32::MAX) {
            m.bytes(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
        }
    });
    socket.request(message)
}

/// The rate of the bucket in front of a link, bytes per second; None if there is none.
pub(crate) fn bucket_rate(socket: &mut Socket, index: u32) -> Result<Option<u64>, NetlinkError> {
    let read = |body: &[u8]| {
        let link = body.get(4..).and_then(ne_u32)?;
        let parent = body.get(12..).and_then(ne_u32)?;
        let of = |kind| Attributes::after(body, TCMSG).find(|(k, _)| *k == kind).map(|(_, value)| value);
        if link != index || parent != ROOT || text(of(TCA_KIND)?) != "tbf" {
            return None;
        }
        let options = Attributes::after(of(TCA_OPTIONS)?, 0);
        let (mut low, mut high) = (None, None);
        for (kind, value) in options {
            match kind {
                TCA_TBF_PARMS => low = value.get(8..).and_then(ne_u32).map(u64::from),
                TCA_TBF_RATE64 => high = <[u8; 8]>::try_from(value).ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        high.or(low)
    };
    let found = socket.dump(Message::new(rtm::GETQDISC, 0, &header(index, 0)), read)?;
    Ok(found.into_iter().next())
}
