//! What must hold of everything that reads what others wrote, and of the table whose sums are exact, whatever bytes they get.
//!
//! Each function is a target of `cargo xtask fuzz`, which looks for inputs that break it, guided by coverage. Those that are
//! worth keeping are in `seeds/`, and an ordinary test runs them.

mod bounded;
mod cgroups;
mod names;
mod peers;

pub use bounded::bounded;
pub use cgroups::{cgroup_notes, cgroup_paths, proc_cgroups};
pub use names::log_names;
pub use peers::peers;

/// What takes any bytes, and panics where something does not hold.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 6] = [
    ("cgroup_paths", cgroup_paths),
    ("cgroup_notes", cgroup_notes),
    ("log_names", log_names),
    ("peers", peers),
    ("proc_cgroups", proc_cgroups),
    ("bounded", bounded),
];

#[cfg(test)]
mod tests {
    use std::{fs, io, path::Path};

    use super::TARGETS;

    #[test]
    fn the_seeds_break_nothing() -> io::Result<()> {
        for (name, target) in TARGETS {
            let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
            let mut count = 0;
            for seed in fs::read_dir(seeds)? {
                target(&fs::read(seed?.path())?);
                count += 1;
            }
            assert!(count > 0, "{name} has no seeds");
        }
        Ok(())
    }
}
