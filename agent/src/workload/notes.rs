//! What the programs noted of cgroups that came and went: taken out of the kernel's table as it is read.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use siskin_ebpf::{CGROUP_PATH_WORDS, CgroupKey, CgroupNote};

use super::Hierarchy;
use crate::kernel::sys;

/// What became of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The cgroup's hierarchy.
    pub hierarchy: Hierarchy,
    /// The cgroup's id.
    pub id: u64,
    /// Its path, when it was made since the last look.
    pub path: Option<String>,
    /// Whether nothing refers to it any more.
    pub is_released: bool,
}

/// Reads the table of notes.
#[derive(Debug)]
pub struct Notes {
    map: OwnedFd,
}

/// Notes per call.
const BATCH: usize = 256;
/// Bytes of a note's key in the table.
pub const KEY_BYTES: usize = size_of::<CgroupKey>();
/// Words of a note in the table.
pub const NOTE_WORDS: usize = size_of::<CgroupNote>() / 8;

impl Notes {
    /// A reader for the map.
    pub fn new(map: OwnedFd) -> Self {
        Self { map }
    }

    /// Takes out all notes, in the order in which the cgroups were made.
    ///
    /// # Errors
    /// When the kernel refuses a call; the notes taken before it are lost.
    pub fn take(&self) -> io::Result<Vec<Note>> {
        let mut taken = Vec::new();
        let (mut keys, mut values) = (vec![0; BATCH * KEY_BYTES], vec![0; BATCH * NOTE_WORDS]);
        let mut cursor = None;
        loop {
            let batch = sys::take_batch(self.map.as_fd(), &mut cursor, &mut keys, &mut values, BATCH as u32)?;
            let notes = keys.as_chunks::<KEY_BYTES>().0.iter().zip(values.as_chunks::<NOTE_WORDS>().0);
            taken.extend(notes.take(batch.count as usize).map(|(key, note)| decode(key, note)));
            if batch.done {
                break;
            }
        }
        // Ids grow: what is older comes first.
        taken.sort_by_key(|note| note.id);
        Ok(taken)
    }
}

/// A note from its bytes.
pub fn decode(key: &[u8; KEY_BYTES], note: &[u64; NOTE_WORDS]) -> Note {
    let [id, hierarchy] = [0, 8].map(|at| {
        let mut word = [0; 8];
        word.copy_from_slice(&key[at..at + 8]);
        u64::from_ne_bytes(word)
    });
    let (released, path) = (note[0], &note[NOTE_WORDS - CGROUP_PATH_WORDS..]);
    let bytes: Vec<u8> =
        path.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    let path = (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned());
    Note { hierarchy: Hierarchy(hierarchy as u32), id, path, is_released: released != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siskin_ebpf::Words as _;

    proptest! {
        #[test]
        fn a_note_says_what_the_program_wrote(
            id in any::<u64>(),
            hierarchy in any::<u32>(),
            path in "[ -~é]{0,240}",
            is_released in any::<bool>(),
        ) {
            let mut note = CgroupNote::zero();
            note.released = is_released.into();
            let mut bytes = [0; CGROUP_PATH_WORDS * 8];
            bytes[..path.len()].copy_from_slice(path.as_bytes());
            // What an earlier and longer path left behind.
            bytes[path.len() + 1..].fill(b'x');
            for (word, bytes) in note.path.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_ne_bytes(*bytes);
            }
            let mut key = [0; KEY_BYTES];
            key[..8].copy_from_slice(&id.to_ne_bytes());
            key[8..].copy_from_slice(&u64::from(hierarchy).to_ne_bytes());
            let words = note.words().as_chunks().0[0];
            let path = (!path.is_empty()).then_some(path);
            prop_assert_eq!(decode(&key, &words), Note { hierarchy: Hierarchy(hierarchy), id, path, is_released });
        }
    }
}
