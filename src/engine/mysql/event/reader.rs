//! Fields of events and packets, read from the front of bytes.

use super::Head;

/// Reads fields from the front of bytes. Nothing is consumed when it gives `None`, except where
/// a field has parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|&[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().copied().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().copied().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().copied().map(u64::from_le_bytes)
    }

    pub(super) fn u56(&mut self) -> Option<u64> {
        self.array::<7>().map(|&[a, b, c, d, e, f, g]| u64::from_le_bytes([a, b, c, d, e, f, g, 0]))
    }

    pub(super) fn head(&mut self) -> Option<Head> {
        Some(Head {
            timestamp: self.u32()?,
            kind: self.u8()?,
            server_id: self.u32()?,
            length: self.u32()?,
            log_pos: self.u32()?,
            flags: self.u16()?,
        })
    }

    /// Bytes up to a NUL, which is consumed too.
    pub(crate) fn until_nul(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|&b| b == 0)?;
        let text = self.bytes(len)?;
        self.u8()?;
        Some(text)
    }

    /// A length-encoded integer of the client/server protocol.
    pub(crate) fn lenenc(&mut self) -> Option<u64> {
        match self.u8()? {
            n @ 0..=250 => Some(u64::from(n)),
            0xfc => self.u16().map(u64::from),
            0xfd => self.array::<3>().map(|&[a, b, c]| u64::from(u32::from_le_bytes([a, b, c, 0]))),
            0xfe => self.u64(),
            _ => None,
        }
    }

    /// A number of `mysql::serialization`.
    pub(super) fn varlen(&mut self) -> Option<u64> {
        let first = *self.0.first()?;
        let more = first.trailing_ones() as usize;
        let mut number = [0; 8];
        if more >= 8 {
            self.u8()?;
            return self.u64();
        }
        let bytes = self.bytes(more + 1)?;
        for (to, from) in number.iter_mut().zip(bytes) {
            *to = *from;
        }
        Some(u64::from_le_bytes(number) >> (more + 1))
    }

    /// The same with its sign in the lowest bit.
    pub(super) fn varlen_signed(&mut self) -> Option<i64> {
        let n = self.varlen()?;
        Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }
}
