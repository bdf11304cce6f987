//! The cgroup probe: notes cgroups that come and go, so that what the other programs count under a cgroup's id has a name, also
//! when the cgroup is gone before user space looks.
//!
//! The kernel calls both tracepoints with one lock held for all CPUs (`TRACE_CGROUP_PATH`, kernel/cgroup/cgroup-internal.h, 4.19 to
//! 6.18): no run of these programs meets another one.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
    helpers::bpf_probe_read_kernel_str_bytes,
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use siskin_ebpf::{CGROUP_PATH_WORDS, CgroupKey, Loss, NOTED, Program, Table};

use crate::{
    atomic::{add, get, set},
    facts::{self, load},
    log::trace,
    maps::{self, CGROUP_BANK, CGROUP_DRAFT, CGROUP_NOTES, CONTROL, OVERLOAD},
    meter,
};

/// `cgroup_mkdir(cgroup, path)`: a new cgroup, before anything can be in it.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::CgroupMkdir, |_| made(&ctx))
}

#[inline(always)]
fn made(ctx: &BtfTracePointContext) {
    let Some(key) = key(ctx) else { return };
    let Some(draft) = CGROUP_DRAFT.get_ptr_mut(0) else { return };
    trace!(ctx, "cgroup {} made", key.id);
    // SAFETY: a map value, and as many bytes as the array of words has; nobody else uses the draft meanwhile.
    let path = unsafe {
        (*draft).released = 0;
        &mut *(&raw mut (*draft).path).cast::<[u8; CGROUP_PATH_WORDS * 8]>()
    };
    // SAFETY: the tracepoint gives a string; a bad address makes the copy fail.
    match unsafe { bpf_probe_read_kernel_str_bytes(ctx.arg(1), path) } {
        // A path that fills the buffer was cut off: it may be another cgroup's.
        Ok(path) if path.len() + 1 < CGROUP_PATH_WORDS * 8 => {
            // An earlier cgroup with this id, if there ever was one, is gone.
            // SAFETY: the draft is complete.
            note(&key, unsafe { &*draft }, BPF_ANY);
        }
        _ => lose(Loss::LongPath),
    }
}

/// `cgroup_release(cgroup, path)`: nothing refers to the cgroup any more.
#[btf_tracepoint(function = "cgroup_release")]
pub fn cgroup_release(ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::CgroupRelease, |_| released(&ctx))
}

#[inline(always)]
fn released(ctx: &BtfTracePointContext) {
    let Some(key) = key(ctx) else { return };
    if let Some(note) = CGROUP_NOTES.get_ptr_mut(key) {
        // SAFETY: a map value.
        set(unsafe { &raw mut (*note).released }, 1);
        return;
    }
    let Some(draft) = CGROUP_DRAFT.get_ptr_mut(0) else { return };
    // SAFETY: a map value that nobody else uses meanwhile. An empty path ends with its first byte.
    unsafe {
        (*draft).released = 1;
        (*draft).path[0] = 0;
        note(&key, &*draft, BPF_NOEXIST);
    }
}

/// The key of the tracepoint's cgroup; `None` in a hierarchy that nothing is charged to.
#[inline(always)]
fn key(ctx: &BtfTracePointContext) -> Option<CgroupKey> {
    let cgroup: *const c_void = ctx.arg(0);
    // SAFETY: a `cgroup` by the tracepoint's BTF, and each next pointer is what the field before points to.
    let (id, hierarchy, controllers) = unsafe {
        let node: *const c_void = load(cgroup, &facts::CGROUP_KN);
        let root: *const c_void = load(cgroup, &facts::CGROUP_ROOT);
        let hierarchy: u32 = load(root, &facts::ROOT_HIERARCHY);
        let controllers: u32 = load(root, &facts::ROOT_CONTROLLERS);
        (load(node, &facts::KN_ID), hierarchy, controllers)
    };
    let charged = hierarchy == 0 || controllers >> (facts::value(&facts::IO_CONTROLLER) & 31) & 1 != 0;
    charged.then_some(CgroupKey { id, hierarchy: hierarchy.into() })
}

/// Leaves a note for user space.
#[inline(always)]
fn note(key: &CgroupKey, note: &siskin_ebpf::CgroupNote, flags: u32) {
    match CGROUP_NOTES.insert(key, note, flags.into()) {
        Ok(()) => {
            if let Some(control) = CONTROL.get_ptr_mut(0) {
                // SAFETY: the one element; the table's number is in range.
                let rows =
                    unsafe { (&raw mut (*control).rows).cast::<u64>().add(Table::Cgroup as usize * 2) };
                if get(rows) == 0 {
                    // Without room there is something to be read already.
                    let _ = OVERLOAD.output(NOTED, BPF_RB_FORCE_WAKEUP.into());
                }
                add(rows, 1);
            }
        }
        Err(_) => lose(Loss::MapFull),
    }
}

#[inline(always)]
fn lose(loss: Loss) {
    if let Some(bank) = CGROUP_BANK.get_ptr_mut(0) {
        // SAFETY: a map value.
        maps::lose(unsafe { &raw mut (*bank).lost }, loss);
    }
}
