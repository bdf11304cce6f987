//! The capabilities that Siskin needs, and giving them up.

use anyhow::{Context as _, bail};
use caps::{CapSet, Capability};

/// The capabilities that loading tracing programs takes: CAP_BPF and CAP_PERFMON, both from 5.8.
pub const NEEDED: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];

/// Those of [`NEEDED`] that this process does not have; CAP_SYS_ADMIN contains them.
///
/// # Errors
/// When the kernel does not tell.
pub fn missing() -> anyhow::Result<Vec<Capability>> {
    let held = caps::read(None, CapSet::Effective).context("cannot read this process's capabilities")?;
    if held.contains(&Capability::CAP_SYS_ADMIN) {
        return Ok(Vec::new());
    }
    Ok(NEEDED.into_iter().filter(|capability| !held.contains(capability)).collect())
}

/// Fails with one clear line when this process may not load tracing programs.
///
/// # Errors
/// When a capability is missing.
pub fn check() -> anyhow::Result<()> {
    let missing = missing()?;
    if !missing.is_empty() {
        bail!(
            "cannot load programs: missing {}; run Siskin as root, or give it these capabilities",
            names(&missing)
        );
    }
    Ok(())
}

/// Capabilities in a sentence.
pub fn names(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    names.join(" and ")
}

/// Gives up every capability but those that `still_works` turns out to need: since 5.19 a process that holds the file
/// descriptors of its maps needs none to read them; before, and where unprivileged BPF is off, it needs CAP_BPF.
///
/// Returns the capabilities kept.
///
/// # Errors
/// When the kernel refuses to change the sets.
pub fn drop_all_but_needed(still_works: impl Fn() -> bool) -> anyhow::Result<Vec<Capability>> {
    let drop_context = "cannot drop capabilities";
    let permitted = caps::read(None, CapSet::Permitted).context(drop_context)?;
    caps::clear(None, CapSet::Effective).context(drop_context)?;
    let mut kept = Vec::new();
    if !still_works() {
        // CAP_SYS_ADMIN stands in for CAP_BPF where that does not exist (before 5.8).
        for capability in [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN] {
            if permitted.contains(&capability) {
                caps::raise(None, CapSet::Effective, capability).context(drop_context)?;
                kept.push(capability);
                if still_works() {
                    break;
                }
            }
        }
    }
    caps::clear(None, CapSet::Inheritable).context(drop_context)?;
    caps::set(None, CapSet::Permitted, &kept.iter().copied().collect()).context(drop_context)?;
    Ok(kept)
}
