//! What this kernel can do, found out by asking it: its BTF, or a program on trial. Never by its version.

use super::{
    btf::Btf,
    hook::{Group, Needs},
    sys,
};

/// What is known of the kernel before anything is loaded.
pub struct Features<'a> {
    /// Its types.
    pub btf: &'a Btf<'a>,
    /// Whether atomic instructions return what was there.
    pub fetching_atomics: bool,
}

impl<'a> Features<'a> {
    /// Asks the kernel that runs, of whose types `btf` tells.
    pub fn probe(btf: &'a Btf<'a>) -> Self {
        Self { btf, fetching_atomics: sys::atomics_fetch() }
    }

    /// Why the group's cheapest hooks cannot be used; `None` when they can, or when there is nothing else to try.
    pub fn lack(&self, group: &Group) -> Option<String> {
        if group.instead.is_empty() {
            return None;
        }
        match group.needs {
            Needs::Nothing => None,
            Needs::Tracepoint(name) => {
                self.btf.tracepoint(name).is_err().then(|| format!("this kernel has no tp_btf/{name}"))
            }
            Needs::FetchingAtomics => (!self.fetching_atomics).then(|| {
                "this kernel's atomic instructions do not return what was there (Linux 5.12)".to_owned()
            }),
        }
    }
}
