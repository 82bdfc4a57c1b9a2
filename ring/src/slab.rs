//! Numbered slots whose numbers go stale when a slot is emptied.

/// Names one use of one slot. A later use of the same slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotId {
    index: u32,
    generation: u32,
}

/// Generations have 31 bits: the top bit of [`SlotId::to_bits`] is free for the caller.
const GENERATION_MASK: u32 = u32::MAX >> 1;

impl SlotId {
    /// Both numbers in 63 bits.
    pub(crate) const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | self.index as u64
    }

    /// The reverse of [`SlotId::to_bits`]; the top bit is ignored.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 & GENERATION_MASK }
    }

    /// The slot's number: small, dense, reused.
    pub(crate) const fn index(self) -> u32 {
        self.index
    }
}

enum Slot<T> {
    Full { generation: u32, value: T },
    Free { generation: u32, next: Option<u32> },
}

/// A vector of slots with a list of the free ones. Memory follows the largest number of values.
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: None, len: 0 }
    }

    /// How many slots are full.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> SlotId {
        self.len += 1;
        let Some(index) = self.free else {
            let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 values");
            assert!(index < u32::MAX, "the last index is never used");
            self.slots.push(Slot::Full { generation: 0, value });
            return SlotId { index, generation: 0 };
        };
        let slot = &mut self.slots[index as usize];
        let Slot::Free { generation, next } = *slot else { panic!("slot {index} is not free") };
        self.free = next;
        *slot = Slot::Full { generation, value };
        SlotId { index, generation }
    }

    pub(crate) fn get(&self, id: SlotId) -> Option<&T> {
        match self.slots.get(id.index as usize) {
            Some(Slot::Full { generation, value }) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        match self.slots.get_mut(id.index as usize) {
            Some(Slot::Full { generation, value }) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// An id that names nothing and never will.
    pub(crate) const fn retired(&self) -> SlotId {
        SlotId { index: u32::MAX, generation: GENERATION_MASK }
    }

    /// Empties the slot; `id` is stale from now on.
    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        self.get(id)?;
        let freed = Slot::Free {
            generation: id.generation.wrapping_add(1) & GENERATION_MASK,
            next: self.free.replace(id.index),
        };
        self.len -= 1;
        match std::mem::replace(&mut self.slots[id.index as usize], freed) {
            Slot::Full { value, .. } => Some(value),
            Slot::Free { .. } => None,
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut T)> {
        (0..).zip(&mut self.slots).filter_map(|(index, slot)| match slot {
            Slot::Full { generation, value } => {
                Some((SlotId { index, generation: *generation }, value))
            }
            Slot::Free { .. } => None,
        })
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_ids_never_reach_a_reused_slot() {
        let mut slab = Slab::new();
        let first = slab.insert("a");
        let second = slab.insert("b");
        assert_eq!(slab.remove(first), Some("a"));
        let third = slab.insert("c");
        assert_eq!(third.index(), first.index(), "the free slot is reused");
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(third), Some(&"c"));
        assert_eq!(slab.get_mut(second), Some(&mut "b"));
        assert_eq!(slab.get(slab.retired()), None);
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.iter_mut().map(|(id, _)| id).collect::<Vec<_>>(), [third, second]);
    }

    #[test]
    fn ids_survive_the_way_through_user_data() {
        let mut slab = Slab::new();
        for round in 0..5 {
            let id = slab.insert(round);
            assert_eq!(SlotId::from_bits(id.to_bits()), id);
            assert_eq!(SlotId::from_bits(id.to_bits() | 1 << 63), id);
            assert_eq!(id.to_bits() >> 63, 0);
            slab.remove(id);
        }
    }

    #[test]
    fn generations_wrap_within_their_bits() {
        let mut slab: Slab<u8> = Slab::new();
        slab.slots.push(Slot::Free { generation: GENERATION_MASK, next: None });
        slab.free = Some(0);
        let last = slab.insert(1);
        assert_eq!(SlotId::from_bits(last.to_bits()), last);
        slab.remove(last);
        assert_eq!(slab.insert(2).generation, 0);
    }
}
