//! What the programs need to know of this kernel's structs, looked up in its BTF before loading.

use siskin_ebpf::{ABSENT, Bits, Need, Probe, kernel_facts};

use super::btf::{Btf, Field, Param};

/// How a member is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Whole, with this width.
    Bytes(u32),
    /// Out of one byte; a bitfield on some kernels.
    Bits,
}

/// A member of a kernel struct that programs read.
#[derive(Debug)]
pub struct FieldFact {
    /// The global that receives its byte offset.
    pub global: &'static str,
    /// The struct.
    pub structure: &'static str,
    /// The member, through named members by dots.
    pub path: &'static str,
    /// How the programs load it.
    pub form: Form,
    /// What happens without it.
    pub need: Need,
    /// The probes that read it.
    pub probes: &'static [Probe],
}

/// The facts found: a value for every global, and for each probe what it lacks.
#[derive(Debug, Default)]
pub struct Facts {
    /// Values of the programs' read-only globals.
    pub globals: Vec<(&'static str, u32)>,
    /// Probes that cannot run here, each with the first reason.
    pub missing: Vec<(Probe, String)>,
}

impl Facts {
    /// Why `probe` cannot run on this kernel.
    pub fn missing(&self, probe: Probe) -> Option<&str> {
        self.missing.iter().find(|(other, _)| *other == probe).map(|(_, reason)| reason.as_str())
    }
}

macro_rules! expand {
    (
        fields { $($field:ident = $structure:literal $path:literal $bytes:literal $need:ident [$($probe:ident),+];)+ }
        bits { $($bits:ident = $bits_structure:literal $bits_path:literal $bits_need:ident [$($bits_probe:ident),+];)+ }
        enumerators { $($enumerator:ident = $constant:literal $default:literal;)+ }
        flags { $($flag:ident = $tracepoint:literal $argument:literal;)+ }
        arguments { $($arguments:ident = $function:literal;)+ }
    ) => {
        /// Every member that the programs read.
        pub const FIELDS: &[FieldFact] = &[$(FieldFact {
            global: stringify!($field),
            structure: $structure,
            path: $path,
            form: Form::Bytes($bytes),
            need: Need::$need,
            probes: &[$(Probe::$probe),+],
        },)+ $(FieldFact {
            global: stringify!($bits),
            structure: $bits_structure,
            path: $bits_path,
            form: Form::Bits,
            need: Need::$bits_need,
            probes: &[$(Probe::$bits_probe),+],
        }),+];
        /// Every enumerator that the programs use: global, name, and the value where the kernel has a macro instead.
        const ENUMERATORS: &[(&str, &str, u32)] = &[$((stringify!($enumerator), $constant, $default)),+];
        /// Every tracepoint argument whose presence the programs ask for: global, tracepoint, index.
        const FLAGS: &[(&str, &str, usize)] = &[$((stringify!($flag), $tracepoint, $argument)),+];
        /// Every function whose number of arguments the programs ask for: global, function.
        const ARGUMENTS: &[(&str, &str)] = &[$((stringify!($arguments), $function)),+];
    };
}

kernel_facts!(expand);

/// Looks every fact up. Pure: the same BTF gives the same facts.
pub fn resolve(btf: &Btf<'_>) -> Facts {
    let mut facts = Facts::default();
    for fact in FIELDS {
        let value = match field(btf, fact) {
            Ok(offset) => offset,
            Err(reason) => {
                if fact.need == Need::Required {
                    for probe in fact.probes {
                        if facts.missing(*probe).is_none() {
                            facts.missing.push((*probe, reason.clone()));
                        }
                    }
                }
                ABSENT
            }
        };
        facts.globals.push((fact.global, value));
    }
    for (global, name, default) in ENUMERATORS {
        let value = btf.enumerator(name).ok().and_then(|value| u32::try_from(value).ok());
        facts.globals.push((global, value.unwrap_or(*default)));
    }
    for (global, tracepoint, index) in FLAGS {
        let parameters = btf.tracepoint(tracepoint).unwrap_or_default();
        let present = matches!(parameters.get(*index), Some(Param::Int { is_bool: true, .. }));
        facts.globals.push((global, u32::from(present)));
    }
    for (global, function) in ARGUMENTS {
        let count = btf.function(function).ok().and_then(|arguments| u32::try_from(arguments.len()).ok());
        facts.globals.push((global, count.unwrap_or(ABSENT)));
    }
    facts
}

fn field(btf: &Btf<'_>, fact: &FieldFact) -> Result<u32, String> {
    let Field { offset_bytes, bit_offset, size_bits, is_bitfield } =
        btf.field(fact.structure, fact.path).map_err(|error| error.to_string())?;
    let value = match fact.form {
        Form::Bytes(bytes) => (!is_bitfield && size_bits == bytes * 8).then_some(offset_bytes),
        Form::Bits => Bits { offset_bytes, shift: bit_offset, size: size_bits }.pack(),
    };
    value.ok_or_else(|| {
        format!(
            "`{}.{}` has {size_bits} bits from bit {bit_offset} of byte {offset_bytes} in this kernel's BTF, which \
             the program cannot load",
            fact.structure, fact.path
        )
    })
}
