//! Where to read: every block of a file once, in random order.

/// The numbers `0..len` in an order that a seed decides, without memory for it.
///
/// A Feistel network of four rounds permutes the numbers of an even count of bits; those of `len` and above are
/// permuted again until they fall below it (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
/// 2002).
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    len: u64,
    half_bits: u32,
    seed: u64,
}

impl Permutation {
    pub(super) fn new(len: u64, seed: u64) -> Permutation {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            seed,
        }
    }

    /// The number at `index`, which is below the length.
    pub(super) fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.len);
        let mut number = index;
        loop {
            number = self.round_trip(number);
            if number < self.len {
                return number;
            }
        }
    }

    fn round_trip(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for round in 0..4 {
            let mixed = mix(right ^ mix(self.seed ^ round)) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half_bits | right
    }
}

/// The finalizer of Steele, Lea and Flood's SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_once() {
        for len in [1, 2, 3, 5, 16, 17, 1000, 4097] {
            for seed in [0, 7] {
                let permutation = Permutation::new(len, seed);
                let mut seen: Vec<u64> = (0..len).map(|index| permutation.at(index)).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..len), "{len}");
            }
        }
    }

    #[test]
    fn the_beginning_is_spread_over_everything_and_the_seed_decides() {
        let len = 1 << 20;
        let first = |seed| {
            let permutation = Permutation::new(len, seed);
            (0..4096)
                .map(|index| permutation.at(index))
                .collect::<Vec<_>>()
        };
        let numbers = first(1);
        assert_ne!(numbers, first(2));
        assert_eq!(numbers, first(1));
        // Each sixteenth has 256 of them; the standard deviation of that is 15.5.
        let mut counts = [0u32; 16];
        for number in &numbers {
            counts[(number * 16 / len) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (150..=360).contains(count)),
            "{counts:?}"
        );
        let ascending = numbers.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((1800..=2300).contains(&ascending), "{ascending}");
    }
}
