//! Bytes of real servers with something wrong in them, for the tests of parsers: the same each time.

/// Calls `target` with `rounds` spoiled forms of `bytes`, each with one to four things wrong.
pub(in crate::engine) fn each(bytes: &[u8], rounds: u32, target: impl Fn(&[u8])) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // The 48 upper bits of a linear congruential generator are random enough to spoil things.
    let mut below = |limit: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 16).unwrap() % limit.max(1)
    };
    for _ in 0..rounds {
        let mut spoiled = bytes.to_vec();
        for _ in 0..=below(4) {
            let at = below(spoiled.len());
            match below(7) {
                0 => spoiled.truncate(at),
                1 => spoiled.insert(at, below(256) as u8),
                2 => drop(spoiled.drain(at..(at + below(16)).min(spoiled.len()))),
                3 => {
                    let again = spoiled[at..(at + below(64)).min(spoiled.len())].to_vec();
                    spoiled.splice(at..at, again);
                }
                4 => {
                    let edge = [0, 1, 0x7f, 0x80, 0xfb, 0xfe, 0xff][below(7)];
                    let end = (at + below(9)).min(spoiled.len());
                    spoiled[at..end].fill(edge);
                }
                _ => {
                    if let Some(byte) = spoiled.get_mut(at) {
                        *byte ^= 1 << below(8);
                    }
                }
            }
        }
        target(&spoiled);
    }
}
