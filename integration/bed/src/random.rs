//! Numbers that look random and depend on a seed alone, so that a run can be repeated.

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The numbers of part `number` of a run with that seed, which depend on no other part.
    pub fn part_of(seed: u64, number: u64) -> Self {
        // The numbers of neighbouring parts would be the same ones, shifted, were the two only added.
        let mut random = Self(seed);
        Self(random.number() ^ Self(!number).number())
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end`, which is left out.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// A number from 0 to 1.
    pub fn part(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// Whether something happens that happens once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of several values.
    ///
    /// # Panics
    /// There are none.
    pub fn one_of<T: Clone>(&mut self, values: &[T]) -> T {
        let at = self.below(values.len() as u64) as usize;
        values.get(at).cloned().expect("a choice of one or more")
    }

    /// One of several values by their weights.
    ///
    /// # Panics
    /// There are none, or no value has a weight.
    pub fn weighed<T: Clone>(&mut self, values: &[(T, u64)]) -> T {
        let mut left = self.below(values.iter().map(|(_, weight)| weight).sum());
        for (value, weight) in values {
            match left.checked_sub(*weight) {
                None => return value.clone(),
                Some(rest) => left = rest,
            }
        }
        unreachable!("a choice of one or more with a weight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let numbers = |mut random: Random| [(); 4].map(|()| random.below(1000));
        assert_eq!(numbers(Random::part_of(7, 3)), numbers(Random::part_of(7, 3)));
        assert_ne!(numbers(Random::part_of(7, 3)), numbers(Random::part_of(7, 4)));
    }

    #[test]
    fn a_choice_follows_its_weights() {
        let mut random = Random::new(1);
        let chosen: Vec<char> = (0..4000).map(|_| random.weighed(&[('a', 3), ('b', 0), ('c', 1)])).collect();
        let count = |wanted: char| chosen.iter().filter(|found| **found == wanted).count();
        assert_eq!(count('b'), 0);
        assert!((2700..3300).contains(&count('a')), "{} of 4000", count('a'));
    }
}
