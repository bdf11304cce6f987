//! What both sides agree on; see the crate's page.

mod cgroup;
mod control;
mod disk;
mod fields;
mod histogram;
mod meter;
mod names;
mod process;
mod sampling;
mod tcp;
mod udp;
mod words;

pub use cgroup::{CGROUP_PATH_WORDS, CgroupBank, CgroupKey, CgroupNote};
pub use control::{
    Control, LOSSES, Loss, NOTED, PROBES, Probe, SHARDS, TABLES, Table, cpus_per_shard_log2, shards,
};
pub use disk::{
    DiskBank, DiskKey, DiskOp, DiskRow, DiskTotal, DiskUncounted, DiskWorkloadKey, DiskWorkloadRow,
};
pub use fields::{ABSENT, Bits, Need};
pub use histogram::{Histogram, Latency, Lifetime};
pub use meter::{AllStats, PROGRAMS, Program, ProgramStats, Timed};
pub use names::{map, program};
pub use process::{CommRow, Exited, Outcome, ProcessBank, ProcessRow};
pub use sampling::{MAX_PERIOD, Rate, Sampler, Weight};
pub use tcp::{
    ConnectionCount, Failure, FlowKey, FlowRow, Listener, PROTOCOL_TCP, Role, Socket, SocketCounters,
    TcpBank, TcpEvents, TcpRow,
};
pub use udp::{PROTOCOL_UDP, UdpBank, UdpRow, UdpTotal};
pub use words::Words;
