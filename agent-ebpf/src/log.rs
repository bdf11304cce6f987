//! Messages from the programs, for debugging; compiled in under the feature `ebpf-log` only.

/// `trace!(ctx, "format", args…)`: a message to user space through aya-log, or nothing.
macro_rules! trace {
    ($($argument:tt)+) => {
        #[cfg(feature = "ebpf-log")]
        aya_log_ebpf::debug!($($argument)+);
    };
}

pub(crate) use trace;
