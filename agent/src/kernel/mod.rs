//! Everything that touches the kernel's BPF side: BTF, privileges, loading, and reading maps.

pub mod attachment;
pub mod btf;
pub mod control;
pub mod facts;
pub mod features;
pub mod hook;
pub mod interrupts;
pub mod iter;
pub mod loader;
pub mod memory;
pub mod privileges;
pub mod program;
pub mod rows;
pub mod sys;
