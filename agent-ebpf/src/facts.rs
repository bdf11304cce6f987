//! Kernel facts, set by user space from BTF before loading (see `kernel_facts!`), and loads through them.
//!
//! Each is a global in a section that is frozen read-only, so the verifier takes it for a constant: a load through a
//! BTF-typed pointer at such an offset is checked against the kernel's own type and needs no helper call.

use core::{ffi::c_void, ptr};

use siskin_ebpf::{ABSENT, Bits, kernel_facts};

macro_rules! define {
    (
        fields { $($field:ident = $structure:literal $path:literal $bytes:literal $need:ident [$($probe:ident),+];)+ }
        bits { $($bits:ident = $bits_structure:literal $bits_path:literal $bits_need:ident [$($bits_probe:ident),+];)+ }
        enumerators { $($enumerator:ident = $constant:literal $default:literal;)+ }
        flags { $($flag:ident = $tracepoint:literal $argument:literal;)+ }
        arguments { $($arguments:ident = $function:literal;)+ }
    ) => {
        $(#[unsafe(no_mangle)] pub static $field: u32 = 0;)+
        $(#[unsafe(no_mangle)] pub static $bits: u32 = 0;)+
        $(#[unsafe(no_mangle)] pub static $enumerator: u32 = 0;)+
        $(#[unsafe(no_mangle)] pub static $flag: u32 = 0;)+
        $(#[unsafe(no_mangle)] pub static $arguments: u32 = 0;)+
    };
}

kernel_facts!(define);

/// The value that user space gave the fact.
#[inline(always)]
pub fn value(fact: &'static u32) -> u32 {
    // SAFETY: a reference is readable. Volatile, because the compiler would fold the zero it sees here.
    unsafe { ptr::read_volatile(fact) }
}

/// Whether this kernel has the optional field.
#[inline(always)]
pub fn present(fact: &'static u32) -> bool {
    value(fact) != ABSENT
}

/// Where the field lies in `base`.
#[inline(always)]
pub fn at<T>(base: *const c_void, field: &'static u32) -> *const T {
    base.wrapping_byte_add(value(field) as usize).cast()
}

/// Loads a field of a kernel struct.
///
/// # Safety
/// `base` is a pointer that the verifier knows the BTF type of, and `field` is a fact about that type with a width
/// of `size_of::<T>()`. A bad address does not fault: the kernel makes the load read zero (`PTR_TO_BTF_ID` loads get an
/// exception table entry, kernel/bpf/verifier.c, 6.18).
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const c_void, field: &'static u32) -> T {
    // SAFETY: as the caller promises.
    unsafe { ptr::read_volatile(at(base, field)) }
}

/// Loads a member of at most eight bits.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub unsafe fn load_bits(base: *const c_void, field: &'static u32) -> u32 {
    let bits = Bits::unpack(value(field));
    // SAFETY: as the caller promises.
    bits.of(unsafe { ptr::read_volatile(base.wrapping_byte_add(bits.offset_bytes as usize).cast()) })
}
