//! Reading maps: banks (one value per CPU) and rows (keyed tables), word by word.
//!
//! A keyed table has two banks. The programs write to one; when it fills up, user space turns them to the other, waits until
//! no program can still hold a row of the first, reads that one for the last time and empties it. So no row is ever
//! removed while a program may add to it, and no count is lost.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    os::fd::{AsFd, OwnedFd},
};

use siskin_ebpf::{Table, Words};

use super::{control::Control, sys};

/// A key of a map.
///
/// # Safety
/// The type has no padding and is valid for every bit pattern.
pub unsafe trait Key: Copy + Eq + Hash + 'static {}

// SAFETY: integers and arrays of them; the structs are repr(C) with their padding named.
unsafe impl Key for u64 {}
// SAFETY: as above.
unsafe impl Key for [u8; 16] {}
// SAFETY: as above.
unsafe impl Key for siskin_ebpf::FlowKey {}
// SAFETY: as above.
unsafe impl Key for siskin_ebpf::DiskKey {}
// SAFETY: as above.
unsafe impl Key for siskin_ebpf::DiskWorkloadKey {}

/// Reads a bank: the one element of a per-CPU array, summed over the CPUs, or all elements of an
/// array, which are its shards.
#[derive(Debug)]
pub struct Bank {
    map: OwnedFd,
    words: Vec<u64>,
    /// Elements of the map.
    elements: usize,
}

impl Bank {
    /// A reader for the map, on a machine with that many possible CPUs.
    pub fn new(map: OwnedFd, value_bytes: usize, cpus: usize) -> Self {
        Self { map, words: vec![0; value_bytes / 8 * cpus], elements: 1 }
    }

    /// A reader for a map with an element for each of so many shards.
    pub fn sharded(map: OwnedFd, value_bytes: usize, shards: u32) -> Self {
        let elements = shards.max(1) as usize;
        Self { map, words: vec![0; value_bytes / 8 * elements], elements }
    }

    /// One system call for each element.
    fn look_up(&mut self) -> io::Result<()> {
        let element_words = self.words.len() / self.elements;
        for (index, words) in (0u32..).zip(self.words.chunks_exact_mut(element_words)) {
            sys::lookup(self.map.as_fd(), &index.to_ne_bytes(), words)?;
        }
        Ok(())
    }

    /// The sum over all CPUs, or shards.
    ///
    /// # Errors
    /// When the kernel refuses the lookup.
    pub fn read<V: Words>(&mut self) -> io::Result<V> {
        self.look_up()?;
        Ok(sum(&self.words))
    }

    /// The same, with something done to each CPU's value before. Says whether all were as they
    /// should be.
    ///
    /// # Errors
    /// When the kernel refuses the lookup.
    pub fn read_each<V: Words>(&mut self, mut each: impl FnMut(&mut V) -> bool) -> io::Result<(V, bool)> {
        self.look_up()?;
        let mut is_good = true;
        for words in self.words.chunks_exact_mut(size_of::<V>() / 8) {
            let mut value = V::zero();
            value.words_mut().copy_from_slice(words);
            is_good &= each(&mut value);
            words.copy_from_slice(value.words());
        }
        Ok((sum(&self.words), is_good))
    }

    /// What the last reading found on each CPU.
    pub fn by_cpu<V: Words>(&self) -> impl Iterator<Item = V> {
        self.words.chunks_exact(size_of::<V>() / 8).map(|words| {
            let mut value = V::zero();
            value.words_mut().copy_from_slice(words);
            value
        })
    }
}

/// Adds up the values of all CPUs, which lie one after the other.
fn sum<V: Words>(words: &[u64]) -> V {
    let mut total = V::zero();
    for value in words.chunks_exact(size_of::<V>() / 8) {
        for (word, add) in total.words_mut().iter_mut().zip(value) {
            *word = word.wrapping_add(*add);
        }
    }
    total
}

/// Elements of so many bytes in a batch call.
fn batch(element_bytes: usize) -> usize {
    (BATCH_BYTES / element_bytes).clamp(LEAST_BATCH, BATCH)
}

/// One hash map, read in batches.
#[derive(Debug)]
pub struct Keyed {
    map: OwnedFd,
    /// Values per key: the number of possible CPUs for a per-CPU map, of which Siskin has none but
    /// in a benchmark, else 1.
    copies: usize,
}

/// Elements per batch call at most: enough that a system call's cost is spread.
const BATCH: usize = 256;
/// Bytes of them, about: few enough to stay in the cache.
const BATCH_BYTES: usize = 64 * 1024;
/// Elements per batch call at least.
const LEAST_BATCH: usize = 4;

impl Keyed {
    /// A reader for the map.
    pub fn new(map: OwnedFd, copies: usize) -> Self {
        Self { map, copies }
    }

    /// Calls `each` with every element, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn each<K: Key, V: Words>(&self, mut each: impl FnMut(K, V)) -> io::Result<()> {
        let value_words = size_of::<V>() / 8 * self.copies;
        let mut size = batch(size_of::<K>() + value_words * 8);
        let mut cursor = None;
        let mut keys = vec![0u8; size * size_of::<K>()];
        let mut values = vec![0u64; size * value_words];
        loop {
            let batch =
                match sys::lookup_batch(self.map.as_fd(), &mut cursor, &mut keys, &mut values, size as u32) {
                    // A bucket with more elements than the buffer holds.
                    Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                        size *= 2;
                        keys.resize(size * size_of::<K>(), 0);
                        values.resize(size * value_words, 0);
                        continue;
                    }
                    batch => batch?,
                };
            let elements = keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(value_words));
            for (key, value) in elements.take(batch.count as usize) {
                // SAFETY: a key is valid for every bit pattern, and the chunk is as long as one.
                each(unsafe { key.as_ptr().cast::<K>().read_unaligned() }, sum(value));
            }
            if batch.done {
                return Ok(());
            }
        }
    }

    /// Removes the element with this key.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove<K: Key>(&self, key: &K) -> io::Result<()> {
        // SAFETY: keys have no padding, so they are initialised bytes.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const *key).cast::<u8>(), size_of::<K>()) };
        sys::delete(self.map.as_fd(), bytes)
    }
}

/// Turns readings that only grow into what was added since the reading before.
#[derive(Debug)]
pub struct Deltas<K, V> {
    counted: HashMap<K, V>,
}

impl<K, V> Default for Deltas<K, V> {
    fn default() -> Self {
        Self { counted: HashMap::new() }
    }
}

impl<K: Key, V: Words> Deltas<K, V> {
    /// What `now` adds to the last reading of this key; `None` when nothing.
    pub fn take(&mut self, key: K, now: V) -> Option<V> {
        let counted = self.counted.entry(key).or_insert_with(V::zero);
        let delta = now.since(counted);
        *counted = now;
        (!delta.is_zero()).then_some(delta)
    }

    /// Keys read so far.
    pub fn len(&self) -> usize {
        self.counted.len()
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.counted.is_empty()
    }

    /// Forgets the readings of the keys that `removed` says are gone from the map.
    pub fn forget(&mut self, mut removed: impl FnMut(&K) -> bool) {
        self.counted.retain(|key, _| !removed(key));
    }
}

/// A keyed table with its two banks.
#[derive(Debug)]
pub struct Rows<K, V> {
    table: Table,
    capacity: u64,
    banks: [Keyed; 2],
    deltas: [Deltas<K, V>; 2],
}

impl<K: Key, V: Words> Rows<K, V> {
    /// A reader for the two maps of `table`, each of which holds `capacity` rows.
    pub fn new(table: Table, maps: [OwnedFd; 2], capacity: u32) -> Self {
        Self {
            table,
            capacity: capacity.into(),
            banks: maps.map(|map| Keyed::new(map, 1)),
            deltas: [Deltas::default(), Deltas::default()],
        }
    }

    /// Calls `each` with what was added to each row since the last call, and empties the bank that fills up.
    ///
    /// # Errors
    /// When the kernel refuses a call; what was read before it has been handed on and is not read again.
    pub fn read(&mut self, control: &Control, mut each: impl FnMut(K, V)) -> io::Result<()> {
        let active = control.active(self.table);
        // An earlier reading failed before it had emptied the other bank.
        if control.rows(self.table, 1 - active) != 0 {
            self.empty(control, 1 - active, &mut each)?;
        }
        if self.fills_up(control) {
            control.activate(self.table, 1 - active);
            sys::wait_for_programs();
            self.empty(control, active, &mut each)?;
            return self.read_bank(1 - active, &mut each);
        }
        self.read_bank(active, &mut each)
    }

    /// Reads a bank that no program writes to for the last time, and removes its rows. A row that the kernel does not remove
    /// keeps its reading, so that it is not counted again.
    fn empty(&mut self, control: &Control, bank: usize, each: &mut impl FnMut(K, V)) -> io::Result<()> {
        self.read_bank(bank, each)?;
        let rows = &self.banks[bank];
        self.deltas[bank].forget(|key| rows.remove(key).is_ok());
        control.emptied(self.table, bank);
        Ok(())
    }

    /// Whether the active bank is so full that it should be emptied before it refuses rows.
    pub fn fills_up(&self, control: &Control) -> bool {
        control.full(self.table)
            || control.rows(self.table, control.active(self.table)) * 4 >= self.capacity * 3
    }

    fn read_bank(&mut self, bank: usize, each: &mut impl FnMut(K, V)) -> io::Result<()> {
        let deltas = &mut self.deltas[bank];
        self.banks[bank].each(|key, now| {
            if let Some(delta) = deltas.take(key, now) {
                each(key, delta);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siskin_ebpf::CommRow;

    #[test]
    fn values_of_all_cpus_are_summed_word_by_word() {
        let total: siskin_ebpf::DiskWorkloadRow = sum(&[1, 10, 0, 7, 2, 20, 0, 8, 3, u64::MAX, 0, 9]);
        assert_eq!([total.ios, total.bytes, total.ios_variance, total.bytes_variance], [6, 29, 0, 24]);
    }

    #[test]
    fn a_batch_stays_in_the_cache_and_makes_progress() {
        assert_eq!(batch(64), BATCH);
        for bytes in [500, 4000, 16_000] {
            let size = batch(bytes);
            assert!(size * bytes <= BATCH_BYTES && (size + 1) * bytes > BATCH_BYTES, "{size} of {bytes}");
        }
        assert_eq!(batch(1 << 20), LEAST_BATCH);
    }

    proptest! {
        #[test]
        fn deltas_add_up_to_the_last_reading(steps in prop::collection::vec((0u64..4, 0u64..1000), 0..200)) {
            let (mut deltas, mut kernel, mut total) = (Deltas::default(), HashMap::new(), HashMap::new());
            for (key, step) in steps {
                let row = kernel.entry(key).or_insert(0u64);
                *row += step;
                if let Some(delta) = deltas.take(key, CommRow { execs: *row }) {
                    *total.entry(key).or_insert(0) += delta.execs;
                }
                prop_assert_eq!(total.get(&key).copied().unwrap_or(0), kernel[&key]);
            }
        }
    }
}
