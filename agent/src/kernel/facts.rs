//! What the programs need to know of this kernel's structs, looked up in its BTF before loading.

use siskin_ebpf::{ABSENT, Need, Probe, kernel_facts};

use super::btf::{Btf, Param};

/// A member of a kernel struct that programs read.
#[derive(Debug)]
pub struct FieldFact {
    /// The global that receives its byte offset.
    pub global: &'static str,
    /// The struct.
    pub structure: &'static str,
    /// The member, through named members by dots.
    pub path: &'static str,
    /// The width that the programs load, in bytes.
    pub bytes: u32,
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
        enumerators { $($enumerator:ident = $constant:literal $default:literal;)+ }
        flags { $($flag:ident = $tracepoint:literal $argument:literal;)+ }
    ) => {
        /// Every member that the programs read.
        pub const FIELDS: &[FieldFact] = &[$(FieldFact {
            global: stringify!($field),
            structure: $structure,
            path: $path,
            bytes: $bytes,
            need: Need::$need,
            probes: &[$(Probe::$probe),+],
        }),+];
        /// Every enumerator that the programs use: global, name, and the value where the kernel has a macro instead.
        const ENUMERATORS: &[(&str, &str, u32)] = &[$((stringify!($enumerator), $constant, $default)),+];
        /// Every tracepoint argument whose presence the programs ask for: global, tracepoint, index.
        const FLAGS: &[(&str, &str, usize)] = &[$((stringify!($flag), $tracepoint, $argument)),+];
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
    facts
}

fn field(btf: &Btf<'_>, fact: &FieldFact) -> Result<u32, String> {
    let field = btf.field(fact.structure, fact.path).map_err(|error| error.to_string())?;
    if field.is_bitfield || field.size_bits != fact.bytes * 8 {
        return Err(format!(
            "`{}.{}` is {} bits wide in this kernel's BTF, the program reads {}",
            fact.structure,
            fact.path,
            field.size_bits,
            fact.bytes * 8
        ));
    }
    Ok(field.offset_bytes)
}
