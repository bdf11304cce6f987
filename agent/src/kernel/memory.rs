//! How much kernel memory maps take, computed before any is made.
//!
//! Formulas follow `map_mem_usage` of each map type (kernel/bpf/arraymap.c and hashtab.c, 6.18), for preallocated maps.

/// A kind of map, as far as its memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One array, shared by all CPUs.
    Array,
    /// One array per CPU.
    PerCpuArray,
    /// A preallocated hash, also LRU.
    Hash,
    /// A ring of so many bytes.
    Ring,
    /// Storage in sockets: memory is taken for each socket that is followed.
    SocketStorage,
}

/// A map to be made: what it is and how large.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Bytes of a key.
    pub key_bytes: u64,
    /// Bytes of a value.
    pub value_bytes: u64,
    /// Most elements it holds.
    pub entries: u32,
}

impl Plan {
    /// A map of so many elements, with sizes in bytes.
    pub const fn new(
        name: &'static str,
        kind: Kind,
        key_bytes: usize,
        value_bytes: usize,
        entries: u32,
    ) -> Self {
        Self { name, kind, key_bytes: key_bytes as u64, value_bytes: value_bytes as u64, entries }
    }
}

/// `struct htab_elem` without its key.
const HASH_ELEMENT_BYTES: u64 = 48;
/// `struct bucket`.
const BUCKET_BYTES: u64 = 16;
/// `struct bpf_local_storage_elem` with its data header, and a share of the socket's `bpf_local_storage`.
const STORAGE_ELEMENT_BYTES: u64 = 256;
/// The map's own struct and its page of slack.
const MAP_BYTES: u64 = 4096;

impl Plan {
    /// The most kernel memory that the map will take on a machine with `cpus` possible CPUs, in bytes.
    pub fn memory_bytes(&self, cpus: u64) -> u64 {
        let entries = u64::from(self.entries);
        let value = self.value_bytes.next_multiple_of(8);
        let key = self.key_bytes.next_multiple_of(8);
        let buckets = entries.next_power_of_two() * BUCKET_BYTES;
        MAP_BYTES
            + match self.kind {
                Kind::Array => entries * value,
                Kind::PerCpuArray => entries * (value * cpus + 8),
                // One spare element per CPU, so that an update can replace an element of a full map.
                Kind::Hash => (entries + cpus) * (HASH_ELEMENT_BYTES + key + value) + buckets,
                // Besides the ring, two pages for the positions in it (kernel/bpf/ringbuf.c, 6.18).
                Kind::Ring => entries + 2 * MAP_BYTES,
                Kind::SocketStorage => entries * (STORAGE_ELEMENT_BYTES + value),
            }
    }
}

/// The most kernel memory that all maps will take together, in bytes.
pub fn total_bytes(plans: &[Plan], cpus: u64) -> u64 {
    plans.iter().map(|plan| plan.memory_bytes(cpus)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_cpu_maps_grow_with_cpus_and_shared_ones_by_their_spare_elements_only() {
        let plan = |kind| Plan { name: "x", kind, key_bytes: 8, value_bytes: 64, entries: 1000 };
        let growth = |kind| plan(kind).memory_bytes(64) - plan(kind).memory_bytes(2);
        assert_eq!(growth(Kind::Array), 0);
        assert_eq!(growth(Kind::PerCpuArray), 1000 * 64 * 62);
        assert_eq!(growth(Kind::Hash), 62 * (48 + 8 + 64));
    }
}
