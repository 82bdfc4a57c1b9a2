//! A small set of numbers.

/// Numbers from 0, one bit each. Equal sets are equal words: the last word is never 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn contains(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, number: usize) {
        let index = number / 64;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] |= 1 << (number % 64);
    }

    pub(super) fn remove(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_equal() {
        let mut bits = Bits::default();
        for number in [3, 64, 200] {
            bits.insert(number);
            assert!(bits.contains(number) && !bits.contains(number + 1));
        }
        bits.remove(200);
        bits.remove(1000);
        bits.remove(64);
        let mut other = Bits::default();
        other.insert(3);
        assert_eq!(bits, other);
        bits.remove(3);
        assert_eq!(bits, Bits::default());
    }
}
