//! Kernel facts, set by user space from BTF before loading (see `kernel_facts!`), and loads through them.
//!
//! Each is a global in a section that is frozen read-only, so the verifier takes it for a constant: a load through a
//! BTF-typed pointer at such an offset is checked against the kernel's own type and needs no helper call. Where pointers have no
//! type, a helper reads the same fields.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
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

/// A pointer to a kernel struct. What is behind it is not there for sure: what cannot be read is zero.
pub trait Pointer: Copy {
    /// A pointer of the same kind.
    fn to(address: *const c_void) -> Self;

    /// Where it points.
    fn address(self) -> *const c_void;

    /// Reads so many bytes on.
    ///
    /// # Safety
    /// As for [`load`].
    unsafe fn read<T: Copy>(self, offset_bytes: u32) -> T;
}

/// Of a BTF type that the verifier knows: it checks the load, which gets an exception table entry (`PTR_TO_BTF_ID`,
/// kernel/bpf/verifier.c, 6.18).
impl Pointer for *const c_void {
    #[inline(always)]
    fn to(address: *const c_void) -> Self {
        address
    }

    #[inline(always)]
    fn address(self) -> *const c_void {
        self
    }

    #[inline(always)]
    unsafe fn read<T: Copy>(self, offset_bytes: u32) -> T {
        // SAFETY: as the caller promises.
        unsafe { ptr::read_volatile(self.wrapping_byte_add(offset_bytes as usize).cast()) }
    }
}

/// A number to the verifier, as programs on kprobes get them: a helper reads what is there.
#[derive(Clone, Copy)]
pub struct Untyped(pub *const c_void);

impl Pointer for Untyped {
    #[inline(always)]
    fn to(address: *const c_void) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn address(self) -> *const c_void {
        self.0
    }

    #[inline(always)]
    unsafe fn read<T: Copy>(self, offset_bytes: u32) -> T {
        let mut value = MaybeUninit::<T>::zeroed();
        let place = self.0.wrapping_byte_add(offset_bytes as usize);
        // SAFETY: the helper copies to a value of this size, and fills it with zeros where it cannot read. Fields are integers and
        // pointers, for which zero is a value.
        unsafe {
            let _ = bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, place);
            value.assume_init()
        }
    }
}

/// Where the field lies in `base`.
#[inline(always)]
pub fn at<T>(base: impl Pointer, field: &'static u32) -> *const T {
    base.address().wrapping_byte_add(value(field) as usize).cast()
}

/// Loads a field of a kernel struct, an integer or a pointer.
///
/// # Safety
/// `base` points to a struct of a type that the verifier knows, or is [`Untyped`], and `field` is a fact about that type with a
/// width of `size_of::<T>()`.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: impl Pointer, field: &'static u32) -> T {
    // SAFETY: as the caller promises.
    unsafe { base.read(value(field)) }
}

/// Loads a field that points to another struct.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub unsafe fn follow<P: Pointer>(base: P, field: &'static u32) -> P {
    // SAFETY: as the caller promises.
    P::to(unsafe { load(base, field) })
}

/// Loads a member of at most eight bits.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub unsafe fn load_bits(base: impl Pointer, field: &'static u32) -> u32 {
    let bits = Bits::unpack(value(field));
    // SAFETY: as the caller promises.
    bits.of(unsafe { base.read(bits.offset_bytes) })
}

/// The same pointer, for a load that must not be done before the one that gave `value`.
///
/// x86 keeps the order of loads. arm64 does not, and a barrier is no instruction of all kernels; but an address has to be known before
/// anything is loaded from there, and this one is computed from `value`. On x86 that is two instructions that nobody waits for.
#[inline(always)]
pub fn after(base: *const c_void, value: u64) -> *const c_void {
    let mut address = base;
    // SAFETY: adds zero. The compiler, which would leave that out, does not see it; the verifier does, and takes the pointer for the
    // same. Touches neither memory nor the stack.
    unsafe {
        asm!(
            "{zero} &= 0",
            "{address} += {zero}",
            zero = inout(reg) value => _,
            address = inout(reg) address,
            options(nostack),
        );
    }
    address
}
