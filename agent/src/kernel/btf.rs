//! Answers from the kernel's own type information (BTF) what eBPF programs without CO-RE must know
//! before they are loaded: offsets of members, values of enumerators, arguments of tracepoints.
//!
//! The format is that of `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h`, kernel 6.18.
//! Two later additions to that `btf.h` (7.1) are read too, as older blobs have zeroes there: 24 bits
//! of `vlen` with 7 of kind, and a header that leads to the record sizes of kinds unknown here.
//!
//! Nothing is copied but a `u32` per type (half a megabyte for 126,000 types), so drop the [`Btf`]
//! and its bytes once the answers are there. They come from the bytes alone: corrupt input gives
//! an error or a wrong answer, never a panic and never an endless walk.

use std::{error::Error, fmt};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Header up to `str_len`, which all versions have.
const HEADER_LEN: usize = 24;
/// Header up to `layout_len` (7.1).
const HEADER_LEN_WITH_LAYOUT: usize = 32;
/// `struct btf_type`, which starts every record.
const RECORD_LEN: usize = 12;
/// How deep aliases, arrays and anonymous members may nest: the kernel's own `MAX_RESOLVE_DEPTH`.
const MAX_DEPTH: u32 = 32;
/// Members one lookup may visit. Real ones visit hundreds; nested repetition could mean 2^512.
const MAX_VISITS: u32 = 1 << 20;

// BTF_KIND_*
const INT: u8 = 1;
const PTR: u8 = 2;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;
const FWD: u8 = 7;
const TYPEDEF: u8 = 8;
const VOLATILE: u8 = 9;
const CONST: u8 = 10;
const RESTRICT: u8 = 11;
const FUNC: u8 = 12;
const FUNC_PROTO: u8 = 13;
const VAR: u8 = 14;
const DATASEC: u8 = 15;
const FLOAT: u8 = 16;
const DECL_TAG: u8 = 17;
const TYPE_TAG: u8 = 18;
const ENUM64: u8 = 19;

/// Why BTF could not be read, or what it does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes start with this instead of BTF's magic number.
    Magic(u16),
    /// The bytes are BTF of a big-endian kernel, which is not read here.
    BigEndian,
    /// The header has this version instead of 1, the only one there is.
    Version(u8),
    /// This part of the blob does not lie within the bytes given, or is malformed.
    Section(&'static str),
    /// The type of this number (as in `bpftool btf dump`) is not what the format allows.
    Corrupt(u32, &'static str),
    /// The type of this number is of this `BTF_KIND_*`, which is unknown here and to the blob.
    UnknownKind(u32, u8),
    /// There is no struct or union of this name.
    NoStruct(String),
    /// This struct has no member of this path.
    NoField(String, String),
    /// This struct has the start of this path, but there it meets a pointer, number or array.
    NotEmbedded(String, String),
    /// No enumeration has an enumerator of this name.
    NoEnumerator(String),
    /// There is no tracepoint of this name.
    NoTracepoint(String),
    /// There is no function of this name.
    NoFunction(String),
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "BTF header: magic {found:#x}, expected {MAGIC:#x}"),
            Self::BigEndian => f.write_str("BTF header: big-endian, expected little-endian"),
            Self::Version(found) => write!(f, "BTF header: version {found}, expected {VERSION}"),
            Self::Section(what) => write!(f, "BTF {what} is cut off or malformed"),
            Self::Corrupt(id, what) => write!(f, "BTF type {id} is corrupt: {what}"),
            Self::UnknownKind(id, kind) => write!(f, "BTF type {id} is of unknown kind {kind}"),
            Self::NoStruct(name) => write!(f, "kernel BTF has no struct `{name}`"),
            Self::NoField(name, path) => write!(f, "struct `{name}` has no field `{path}`"),
            Self::NotEmbedded(name, path) => {
                write!(f, "struct `{name}`: `{path}` does not stay inside of it")
            }
            Self::NoEnumerator(name) => write!(f, "kernel BTF has no enumerator `{name}`"),
            Self::NoTracepoint(name) => write!(f, "no tracepoint `{name}`"),
            Self::NoFunction(name) => write!(f, "kernel BTF has no function `{name}`"),
        }
    }
}

impl Error for BtfError {}

/// Where a member lies within a struct (`struct btf_member` in `btf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the outermost struct to the byte with the member's first bit.
    pub offset_bytes: u32,
    /// Bits from the least significant of that byte to the first one: 0 to 7, 0 for plain members.
    pub bit_offset: u32,
    /// Size in bits, for an array that of all elements.
    pub size_bits: u32,
    /// Whether it is declared as a bit-field, so that a load of its type may read others with it.
    pub is_bitfield: bool,
}

/// An argument of a tracepoint. The program finds each in 8 bytes of its context, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param<'a> {
    /// A pointer.
    Pointer {
        /// Name of the struct or union it points to, be it only declared; `None` for all else.
        to: Option<&'a str>,
    },
    /// An integer of any name, so `blk_status_t` too.
    Int {
        /// Size in bytes.
        bytes: u32,
        /// Whether it is a `bool` (`BTF_INT_BOOL`).
        is_bool: bool,
    },
    /// An enumeration.
    Enum {
        /// Size in bytes.
        bytes: u32,
    },
    /// Anything else, such as a struct by value.
    Other,
}

/// A kernel's BTF, indexed.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where in `types` each type starts. Number 1 is first; 0 is `void` and has no record.
    offsets: Vec<u32>,
    /// Numbers of the structs, unions and typedefs that have a name.
    named: Vec<u32>,
    /// Numbers of the enumerations.
    enums: Vec<u32>,
}

/// One record, `struct btf_type`.
#[derive(Clone, Copy, Default)]
struct Type<'a> {
    id: u32,
    name: u32,
    info: u32,
    /// The C union of `size` and `type`.
    value: u32,
    /// What follows, in words and up to the end of the section: `vlen` says how much is its own.
    tail: &'a [[u8; 4]],
}

impl<'a> Type<'a> {
    fn read(types: &'a [u8], offset: usize, id: u32) -> Option<Self> {
        let (record, tail) = types.get(offset..)?.as_chunks().0.split_first_chunk()?;
        let [name, info, value] = record.map(u32::from_le_bytes);
        Some(Self { id, name, info, value, tail })
    }

    fn kind(&self) -> u8 {
        (self.info >> 24) as u8 & 0x7f
    }

    fn kind_flag(&self) -> bool {
        self.info >> 31 == 1
    }

    fn vlen(&self) -> usize {
        (self.info & 0x00ff_ffff) as usize
    }

    /// Bytes that follow the record; `None` for an unknown kind.
    fn tail_len(&self, layout: &[u8]) -> Option<usize> {
        Some(match self.kind() {
            0 => return None,
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => 12 * self.vlen(),
            ENUM | FUNC_PROTO => 8 * self.vlen(),
            PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
            // struct btf_layout: bytes that follow once, bytes per element, two bytes of flags
            unknown => {
                let [once, each, ..] = *layout.as_chunks::<4>().0.get(usize::from(unknown))?;
                usize::from(once) + usize::from(each) * self.vlen()
            }
        })
    }

    /// The `vlen` elements after the record, each of `N` words.
    fn elements<const N: usize>(&self) -> impl Iterator<Item = [u32; N]> + use<'a, N> {
        let elements = self.tail.as_chunks().0.iter().take(self.vlen());
        elements.map(|words| words.map(u32::from_le_bytes))
    }

    /// The one part after the record of a kind that has no elements, of `N` words.
    fn fixed<const N: usize>(&self) -> Result<[u32; N], BtfError> {
        let words = self.tail.first_chunk();
        let words = words.ok_or(self.corrupt("it is cut off"))?;
        Ok(words.map(u32::from_le_bytes))
    }

    fn is_aggregate(&self) -> bool {
        matches!(self.kind(), STRUCT | UNION)
    }

    fn corrupt(&self, what: &'static str) -> BtfError {
        BtfError::Corrupt(self.id, what)
    }
}

/// What the search for one name found.
struct Member {
    bits: u64,
    type_id: u32,
    /// 0 unless the struct says that this is a bit-field (`BTF_MEMBER_BITFIELD_SIZE`).
    bitfield_size: u32,
}

impl<'a> Btf<'a> {
    /// Indexes a whole BTF blob, such as the bytes of `/sys/kernel/btf/vmlinux`.
    ///
    /// Split BTF (of a module) is not supported: its numbers start where those of `vmlinux` end.
    ///
    /// # Errors
    /// A wrong magic, byte order or version; a section outside of the bytes; a record that does not
    /// fit into its section; a type of unknown kind. What types refer to is checked on the way there.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
        let (Some([low, high, version, _]), Some(header_len)) = (bytes.first_chunk(), word(4)) else {
            return Err(BtfError::Section("header"));
        };
        match (u16::from_le_bytes([*low, *high]), *version) {
            (MAGIC, VERSION) => {}
            (MAGIC, version) => return Err(BtfError::Version(version)),
            (magic, _) if magic == MAGIC.swap_bytes() => return Err(BtfError::BigEndian),
            (magic, _) => return Err(BtfError::Magic(magic)),
        }
        if header_len < HEADER_LEN {
            return Err(BtfError::Section("header"));
        }
        // Offset and length of a section are at `at`, counted from the end of the header.
        let section = |at: usize| {
            let start = header_len.checked_add(word(at)?)?;
            bytes.get(start..start.checked_add(word(at + 4)?)?)
        };
        let types = section(8).ok_or(BtfError::Section("type section"))?;
        let strings = section(16)
            .filter(|strings| strings.first() == Some(&0) && strings.last() == Some(&0))
            .ok_or(BtfError::Section("string section"))?;
        let layout = match header_len {
            HEADER_LEN_WITH_LAYOUT.. => section(24).ok_or(BtfError::Section("layout section"))?,
            _ => &[],
        };

        // One allocation for the most types there can be. Only what is used becomes resident.
        let mut offsets = Vec::with_capacity(types.len() / RECORD_LEN);
        let (mut named, mut enums) = (Vec::new(), Vec::new());
        let mut offset = 0;
        while offset < types.len() {
            let id = offsets.len() as u32 + 1;
            let record = Type::read(types, offset, id).ok_or(BtfError::Section("type section"))?;
            match record.kind() {
                STRUCT | UNION | TYPEDEF if record.name != 0 => named.push(id),
                ENUM | ENUM64 => enums.push(id),
                _ => {}
            }
            let unknown = BtfError::UnknownKind(id, record.kind());
            offsets.push(offset as u32);
            offset += RECORD_LEN + record.tail_len(layout).ok_or(unknown)?;
            if offset > types.len() {
                return Err(record.corrupt("it is cut off"));
            }
        }
        Ok(Self { types, strings, offsets, named, enums })
    }

    /// Finds a member of a struct or union, which may also be named by a typedef of it.
    ///
    /// `path` is a name, or several joined by dots for a member of an embedded struct. Each is
    /// searched in anonymous members too, and through typedefs, qualifiers and tags; pointers are not
    /// followed. Of several structs of the name (compilation units need not agree) the first that has
    /// the path counts. A pointer has the size it has in this process: BTF does not record it.
    ///
    /// # Errors
    /// [`BtfError::NoStruct`] and [`BtfError::NoField`] for what this kernel does not have,
    /// [`BtfError::NotEmbedded`] for a path it cannot have, [`BtfError::Corrupt`].
    pub fn field(&self, structure: &str, path: &str) -> Result<Field, BtfError> {
        let (mut first_error, mut visits) = (None, MAX_VISITS);
        for record in self.named(structure) {
            let found = match self.resolve(record.id) {
                Ok(outer) if outer.is_aggregate() => self.follow(outer, structure, path, &mut visits),
                Ok(_) => continue, // a typedef of something else
                Err(error) => Err(error),
            };
            match found {
                Ok(field) => return Ok(field),
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        Err(first_error.unwrap_or_else(|| BtfError::NoStruct(structure.into())))
    }

    /// Finds the value of an enumerator: of the first of this name in any enumeration.
    ///
    /// Values are unsigned unless the enumeration is marked as signed, which it is only since
    /// kernel 6.0: a negative 32-bit value of an older kernel comes out as 2^32 more. Of unsigned
    /// 64-bit values the bits are returned.
    ///
    /// # Errors
    /// [`BtfError::NoEnumerator`]. A constant that is a macro in this kernel is not in its BTF.
    pub fn enumerator(&self, name: &str) -> Result<i64, BtfError> {
        for record in self.enums.iter().filter_map(|id| self.get(*id).ok()) {
            let value = if record.kind() == ENUM64 {
                let mut values = record.elements::<3>();
                let found = values.find(|value| self.name_is(value[0], name));
                found.map(|[_, low, high]| (u64::from(high) << 32 | u64::from(low)) as i64)
            } else {
                let mut values = record.elements::<2>();
                let found = values.find(|value| self.name_is(value[0], name));
                let signed = record.kind_flag();
                found.map(|[_, value]| if signed { (value as i32).into() } else { value.into() })
            };
            if let Some(value) = value {
                return Ok(value);
            }
        }
        Err(BtfError::NoEnumerator(name.into()))
    }

    /// The arguments of a tracepoint, without the `void *` that the kernel passes before them.
    ///
    /// The kernel describes each by a typedef `btf_trace_NAME` of a pointer to a function
    /// (`include/trace/bpf_probe.h`).
    ///
    /// # Errors
    /// [`BtfError::NoTracepoint`] if this kernel has none outside of modules; [`BtfError::Corrupt`].
    pub fn tracepoint(&self, name: &str) -> Result<Vec<Param<'a>>, BtfError> {
        let full_name = format!("btf_trace_{name}");
        let record = self.named(&full_name).find(|record| record.kind() == TYPEDEF);
        let record = record.ok_or_else(|| BtfError::NoTracepoint(name.into()))?;
        let pointer = self.resolve(record.id)?;
        let function = match pointer.kind() {
            PTR => self.resolve(pointer.value)?,
            _ => pointer,
        };
        if function.kind() != FUNC_PROTO {
            return Err(record.corrupt("a tracepoint that is not a pointer to a function"));
        }
        let arguments = function.elements().skip(1);
        arguments.map(|[_, id]| self.param(id)).collect()
    }

    /// The parameters of a function (`BTF_KIND_FUNC`): a place for fexit, or for an iterator `NAME` the function
    /// `bpf_iter_NAME`.
    ///
    /// # Errors
    /// [`BtfError::NoFunction`] if this kernel has none outside of modules; [`BtfError::Corrupt`].
    pub fn function(&self, name: &str) -> Result<Vec<Param<'a>>, BtfError> {
        let record = self.get(self.function_id(name)?)?;
        let prototype = self.get(record.value)?;
        if prototype.kind() != FUNC_PROTO {
            return Err(record.corrupt("a function without a prototype"));
        }
        prototype.elements().map(|[_, id]| self.param(id)).collect()
    }

    /// The number of a function's type, by which programs are attached to it.
    ///
    /// # Errors
    /// [`BtfError::NoFunction`] if this kernel has none outside of modules.
    pub fn function_id(&self, name: &str) -> Result<u32, BtfError> {
        let mut records = (1..).map_while(|id| self.get(id).ok());
        let record = records.find(|record| record.kind() == FUNC && self.name_is(record.name, name));
        record.map(|record| record.id).ok_or_else(|| BtfError::NoFunction(name.into()))
    }

    fn get(&self, id: u32) -> Result<Type<'a>, BtfError> {
        let Some(index) = (id as usize).checked_sub(1) else {
            return Ok(Type::default());
        };
        let offset = self.offsets.get(index);
        let record = offset.and_then(|offset| Type::read(self.types, *offset as usize, id));
        record.ok_or(BtfError::Corrupt(id, "another type refers to it, but it does not exist"))
    }

    fn named(&self, name: &str) -> impl Iterator<Item = Type<'a>> {
        let records = self.named.iter().filter_map(|id| self.get(*id).ok());
        records.filter(move |record| self.name_is(record.name, name))
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..);
        let rest = rest.and_then(|rest| rest.strip_prefix(name.as_bytes()));
        !name.is_empty() && rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The type behind typedefs, qualifiers and tags.
    fn resolve(&self, id: u32) -> Result<Type<'a>, BtfError> {
        let mut found = self.get(id)?;
        for _ in 0..MAX_DEPTH {
            match found.kind() {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => found = self.get(found.value)?,
                _ => return Ok(found),
            }
        }
        Err(BtfError::Corrupt(id, "its aliases never end"))
    }

    fn size_bits(&self, id: u32) -> Result<u64, BtfError> {
        let (mut next, mut bits) = (id, 8_u64);
        for _ in 0..MAX_DEPTH {
            let found = self.resolve(next)?;
            let (factor, element) = match found.kind() {
                INT | STRUCT | UNION | ENUM | FLOAT | ENUM64 => (found.value, None),
                PTR => (size_of::<usize>() as u32, None),
                ARRAY => {
                    let [element, _, count] = found.fixed()?;
                    (count, Some(element))
                }
                _ => return Err(found.corrupt("a member cannot be of its kind")),
            };
            let product = bits.checked_mul(factor.into());
            bits = product.ok_or(found.corrupt("its size is beyond all memory"))?;
            let Some(element) = element else {
                return Ok(bits);
            };
            next = element;
        }
        Err(BtfError::Corrupt(id, "its elements never end"))
    }

    /// Searches one struct and its anonymous members. `depth` and `visits` are what is left of them.
    fn member(
        &self,
        of: Type<'a>,
        name: &str,
        depth: u32,
        visits: &mut u32,
    ) -> Result<Option<Member>, BtfError> {
        for [name_offset, type_id, offset] in of.elements() {
            let endless = || of.corrupt("its members never end");
            *visits = visits.checked_sub(1).ok_or_else(endless)?;
            let (bits, bitfield_size) = match of.kind_flag() {
                true => (u64::from(offset & 0x00ff_ffff), offset >> 24),
                false => (u64::from(offset), 0),
            };
            if self.name_is(name_offset, name) {
                return Ok(Some(Member { bits, type_id, bitfield_size }));
            }
            // That the member has no name counts, not whether its type has one: since 6.19 the
            // kernel is built with -fms-extensions, which lets a named struct be embedded so.
            if self.strings.get(name_offset as usize) == Some(&0) {
                let inner = self.resolve(type_id)?;
                if inner.is_aggregate() {
                    let depth = depth.checked_sub(1).ok_or_else(endless)?;
                    if let Some(found) = self.member(inner, name, depth, visits)? {
                        return Ok(Some(Member { bits: bits + found.bits, ..found }));
                    }
                }
            }
        }
        Ok(None)
    }

    fn follow(
        &self,
        outer: Type<'a>,
        structure: &str,
        path: &str,
        visits: &mut u32,
    ) -> Result<Field, BtfError> {
        let (mut current, mut start, mut bitfield_size) = (outer, 0, 0);
        for component in path.split('.') {
            if !current.is_aggregate() {
                return Err(BtfError::NotEmbedded(structure.into(), path.into()));
            }
            let found = self.member(current, component, MAX_DEPTH, visits)?;
            let found = found.ok_or_else(|| BtfError::NoField(structure.into(), path.into()))?;
            start += found.bits;
            bitfield_size = found.bitfield_size;
            current = self.resolve(found.type_id)?;
        }

        let mut size_bits = self.size_bits(current.id)?;
        let mut is_bitfield = bitfield_size != 0;
        if is_bitfield {
            size_bits = bitfield_size.into();
        } else if current.kind() == INT {
            // Without kind_flag (before 5.0) a bit-field is of an integer type made for it, with
            // fewer bits than its bytes hold: BTF_INT_OFFSET and BTF_INT_BITS.
            let [data] = current.fixed()?;
            let (offset, bits) = (u64::from(data >> 16 & 0xff), u64::from(data & 0xff));
            is_bitfield = offset != 0 || bits != size_bits;
            (start, size_bits) = (start + offset, bits);
        }
        let bit_offset = (start % 8) as u32;
        if bit_offset != 0 && !is_bitfield {
            return Err(current.corrupt("a member of it starts within a byte"));
        }
        let (Ok(offset_bytes), Ok(size_bits)) = (u32::try_from(start / 8), u32::try_from(size_bits)) else {
            return Err(current.corrupt("a member of it is beyond 512 MiB"));
        };
        Ok(Field { offset_bytes, bit_offset, size_bits, is_bitfield })
    }

    fn param(&self, id: u32) -> Result<Param<'a>, BtfError> {
        let found = self.resolve(id)?;
        let bytes = found.value;
        Ok(match found.kind() {
            PTR => {
                let target = self.resolve(found.value)?;
                let is_struct = target.is_aggregate() || target.kind() == FWD;
                Param::Pointer { to: self.name(target.name).filter(|_| is_struct) }
            }
            INT => {
                let [data] = found.fixed()?;
                Param::Int { bytes, is_bool: data >> 24 & 4 != 0 }
            }
            ENUM | ENUM64 => Param::Enum { bytes },
            _ => Param::Other,
        })
    }

    /// A name, unless it is empty or not one that C could have.
    fn name(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        let name = rest.split(|byte| *byte == 0).next()?;
        let name = std::str::from_utf8(name).ok()?;
        (!name.is_empty()).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_without_types_says_what_it_lacks() {
        let header = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let bytes = [header.as_slice(), &[0]].concat();
        let btf = Btf::parse(&bytes).unwrap();
        let error = btf.field("task_struct", "pid").unwrap_err();
        assert_eq!(error.to_string(), "kernel BTF has no struct `task_struct`");
        let error = btf.enumerator("SOCK_DONE").unwrap_err();
        assert_eq!(error.to_string(), "kernel BTF has no enumerator `SOCK_DONE`");
        let error = btf.tracepoint("block_rq_error").unwrap_err();
        assert_eq!(error.to_string(), "no tracepoint `block_rq_error`");
        let error = btf.function("bpf_iter_task_file").unwrap_err();
        assert_eq!(error.to_string(), "kernel BTF has no function `bpf_iter_task_file`");
    }
}
