//! Random numbers that are the same on every machine and in every version of this crate.

/// The xoshiro256++ generator of Blackman and Vigna.
#[derive(Clone, Debug)]
pub(crate) struct Rng([u64; 4]);

/// One step of splitmix64: turns any number, however regular, into a random-looking one.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of piece `index` of the thing called `name`, in the model of `seed`.
    ///
    /// Each piece has its own, so that pieces can be made in any order by any number of threads.
    pub(crate) fn new(seed: u64, name: &str, index: u64) -> Rng {
        // FNV-1a: the name's part of the seed.
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let mut state = seed;
        state = splitmix(&mut state) ^ name;
        state = splitmix(&mut state) ^ index;
        Rng(std::array::from_fn(|_| splitmix(&mut state)))
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Overwrites `out` with random bytes.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Entries of [`bell`]: as many as 12 bits can name.
pub(crate) const BELL_ENTRIES: usize = 1 << 12;

/// Equally likely numbers whose distribution is close to the normal one: mean 0, mean square 1,
/// none beyond 2.8.
///
/// Only additions, multiplications and divisions go into it, and a square root: all of them round
/// the same on every machine, which logarithms do not.
pub(crate) fn bell() -> Vec<f32> {
    let raw = |i: usize| {
        let u = (i as f64 + 0.5) / BELL_ENTRIES as f64 * 2.0 - 1.0;
        let u2 = u * u;
        let u8 = u2 * u2 * u2 * u2;
        u * (1.25 + 0.30 * u2 + 1.2 * u8)
    };
    let mean_square = (0..BELL_ENTRIES).map(|i| raw(i) * raw(i)).sum::<f64>() / BELL_ENTRIES as f64;
    (0..BELL_ENTRIES)
        .map(|i| (raw(i) / mean_square.sqrt()) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_differ_and_repeat() {
        let first = |seed, name, index| Rng::new(seed, name, index).next();
        assert_eq!(first(1, "a", 0), first(1, "a", 0));
        let all = [
            first(1, "a", 0),
            first(2, "a", 0),
            first(1, "b", 0),
            first(1, "a", 1),
        ];
        for i in 0..4 {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
    }

    #[test]
    fn the_bell_is_centred_and_scaled() {
        let bell = bell();
        let mean = bell.iter().sum::<f32>() / bell.len() as f32;
        let square = bell.iter().map(|v| v * v).sum::<f32>() / bell.len() as f32;
        assert!(
            mean.abs() < 1e-3 && (square - 1.0).abs() < 1e-3,
            "{mean} {square}"
        );
        assert!(bell.iter().all(|v| v.abs() < 2.8));
    }
}
