//! Map values as words, so that user space can add them up without knowing what they mean.

/// A value made of `u64` words only, without padding, so that it can be summed and subtracted word by word.
///
/// # Safety
/// The type is `repr(C)`, consists of `u64` words alone, and is valid for every bit pattern.
pub unsafe trait Words: Copy + 'static {
    /// All words zero.
    fn zero() -> Self {
        // SAFETY: every bit pattern is valid.
        unsafe { core::mem::zeroed() }
    }

    /// The value as its words.
    fn words(&self) -> &[u64] {
        // SAFETY: the type consists of u64 words alone, so it is aligned and initialised as such.
        unsafe { core::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>() / 8) }
    }

    /// The value as its words, to change.
    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`, and every bit pattern is valid.
        unsafe { core::slice::from_raw_parts_mut((&raw mut *self).cast(), size_of::<Self>() / 8) }
    }

    /// Adds every word of `other`, modulo 2^64.
    fn add(&mut self, other: &Self) {
        for (word, other) in self.words_mut().iter_mut().zip(other.words()) {
            *word = word.wrapping_add(*other);
        }
    }

    /// Every word less that of `before`, modulo 2^64.
    fn since(&self, before: &Self) -> Self {
        let mut delta = *self;
        for (word, before) in delta.words_mut().iter_mut().zip(before.words()) {
            *word = word.wrapping_sub(*before);
        }
        delta
    }

    /// Whether all words are zero.
    fn is_zero(&self) -> bool {
        self.words().iter().all(|word| *word == 0)
    }
}

/// Says that types are made of words.
macro_rules! made_of_words {
    ($($type:ty),+ $(,)?) => { $(
        // SAFETY: repr(C), and every member is a u64, an array of u64, or another such type.
        unsafe impl $crate::Words for $type {}
    )+ };
}

pub(crate) use made_of_words;
