//! What each operation does to the value of its key.

use crate::history::Bytes;

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// There is none.
    Absent,
    /// One that no answer in the whole history shows. All of them are alike.
    Unread,
    /// One that some answer shows, by its number. Only where no value is derived from another.
    Known(u32),
    /// Any. Only where values are derived from others.
    Bytes(Bytes),
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Act {
    Set(State),
    Get,
    Del,
    Append(Bytes),
    Incr(i64),
    SetNx(State),
    GetSet(State),
    GetDel,
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing that depends on the value.
    Nothing,
    /// The value before.
    State(State),
    /// A number.
    Integer(i64),
}

impl State {
    pub(super) fn is_present(&self) -> bool {
        *self != Self::Absent
    }

    /// The bytes; empty where there are none.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Absent | Self::Unread | Self::Known(_) => &[],
        }
    }

    /// The number that it stands for, as INCR sees it.
    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Absent => Some(0),
            Self::Bytes(bytes) => number(bytes),
            Self::Unread | Self::Known(_) => None,
        }
    }
}

impl Act {
    /// The value afterwards; `None` if that contradicts what was told, or if there is no effect
    /// because of an error.
    pub(super) fn apply(&self, state: &State, told: &Told) -> Option<State> {
        let is_told = |number: i64| match told {
            Told::Nothing => true,
            Told::Integer(told) => *told == number,
            Told::State(_) => false,
        };
        let was_told = match told {
            Told::Nothing => true,
            Told::State(told) => told == state,
            Told::Integer(_) => false,
        };
        let present = i64::from(state.is_present());
        match self {
            Self::Set(value) => Some(value.clone()),
            Self::Get => was_told.then(|| state.clone()),
            Self::GetSet(value) => was_told.then(|| value.clone()),
            Self::GetDel => was_told.then_some(State::Absent),
            Self::Del => is_told(present).then_some(State::Absent),
            Self::SetNx(value) => is_told(1 - present)
                .then(|| if state.is_present() { state.clone() } else { value.clone() }),
            Self::Append(suffix) => {
                let len = state.bytes().len() + suffix.len();
                is_told(i64::try_from(len).ok()?)
                    .then(|| State::Bytes([state.bytes(), &suffix[..]].concat().into()))
            }
            Self::Incr(by) => {
                let sum = state.number()?.checked_add(*by)?;
                is_told(sum).then(|| State::Bytes(sum.to_string().into_bytes().into()))
            }
        }
    }

    /// Whether the value afterwards is the same whatever it was before.
    pub(super) const fn overwrites(&self) -> bool {
        matches!(self, Self::Set(_) | Self::Del | Self::GetSet(_) | Self::GetDel)
    }

    /// Whether it can only have looked, given what was told.
    pub(super) fn only_reads(&self, told: &Told) -> bool {
        match self {
            Self::Get => true,
            Self::Del | Self::SetNx(_) => *told == Told::Integer(0),
            Self::GetDel => *told == Told::State(State::Absent),
            Self::Set(_) | Self::Append(_) | Self::Incr(_) | Self::GetSet(_) => false,
        }
    }
}

/// A 64-bit decimal number in its shortest form, as the server takes it for INCR.
pub(super) fn number(bytes: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number = text.parse::<i64>().ok()?;
    (number.to_string() == text).then_some(number)
}
