//! What this kernel can do, found out by asking it: its BTF, or a program on trial. Never by its version.

use super::{
    btf::Btf,
    hook::{Group, Needs, Way},
    sys,
};

/// What is known of the kernel before anything is loaded.
pub struct Features<'a> {
    /// Its types.
    pub btf: &'a Btf<'a>,
    /// Whether atomic instructions return what was there.
    pub fetching_atomics: bool,
    /// Whether programs can be attached to the return of a function, by the number of its type. Asked only where the answer is needed.
    pub attaches_exits: fn(u32) -> bool,
}

/// The way that was chosen for a group.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The way.
    pub way: Way,
    /// Those that would be cheaper, with what they lack here.
    pub passed: Vec<(Way, String)>,
}

impl<'a> Features<'a> {
    /// Asks the kernel that runs, of whose types `btf` tells.
    pub fn probe(btf: &'a Btf<'a>) -> Self {
        Self { btf, fetching_atomics: sys::atomics_fetch(), attaches_exits: sys::attaches_exits }
    }

    /// Chooses the cheapest way that can be used.
    pub fn choose(&self, group: &Group) -> Option<Choice> {
        let mut passed = Vec::new();
        for way in group.ways {
            match self.lack(way) {
                Some(lack) if passed.len() + 1 < group.ways.len() => passed.push((*way, lack)),
                _ => return Some(Choice { way: *way, passed }),
            }
        }
        None
    }

    /// Why the hooks of a way cannot be used.
    fn lack(&self, way: &Way) -> Option<String> {
        match way.needs {
            Needs::Nothing => None,
            Needs::Tracepoint(name) => {
                self.btf.tracepoint(name).is_err().then(|| format!("this kernel has no tp_btf/{name}"))
            }
            Needs::Exits(names) => {
                let ids: Result<Vec<_>, _> =
                    names.iter().map(|name| self.btf.function_id(name).map_err(|_| name)).collect();
                match ids {
                    Ok(ids) if ids.first().is_some_and(|id| (self.attaches_exits)(*id)) => None,
                    Ok(_) => Some("this kernel attaches nothing to the return of functions".to_owned()),
                    Err(name) => Some(format!("this kernel has no fexit/{name}")),
                }
            }
            Needs::FetchingAtomics => (!self.fetching_atomics).then(|| {
                "this kernel's atomic instructions do not return what was there (Linux 5.12)".to_owned()
            }),
        }
    }
}
