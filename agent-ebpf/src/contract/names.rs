//! The names of maps and programs, in one place. The kernel keeps 15 bytes of a name (`BPF_OBJ_NAME_LEN` is 16
//! with the final zero, include/uapi/linux/bpf.h, 6.18); a test holds every name to that, and holds the object to this list.

/// Maps, as `bpftool map` shows them.
pub mod map {
    /// What user space tells the programs, and a few shared counts; one element, memory-mapped by user space.
    pub const CONTROL: &str = "control";
    /// What the programs note about themselves, per CPU.
    pub const PROGRAM_STATS: &str = "program_stats";
    /// Wakes user space when programs ran so often within a tick that it costs what may be spent.
    /// Carries no measurement.
    pub const OVERLOAD: &str = "overload";
    /// Losses of the cgroup probe, per CPU.
    pub const CGROUP_BANK: &str = "cgroup_bank";
    /// Cgroups that came or went since user space last looked.
    pub const CGROUP_NOTES: &str = "cgroup_notes";
    /// Where a note is put together, per CPU: it is longer than the stack.
    pub const CGROUP_DRAFT: &str = "cgroup_draft";
    /// Per-CPU counters and histograms of the process probe.
    pub const PROCESS_BANK: &str = "process_bank";
    /// Process counters by cgroup, in two banks.
    pub const PROCESS_ROWS: [&str; 2] = ["process_rows_a", "process_rows_b"];
    /// Execs by command name, in two banks.
    pub const COMM_ROWS: [&str; 2] = ["comm_rows_a", "comm_rows_b"];
    /// Processes whose exit was counted, for kernels that do not say which thread was the last.
    pub const EXITED: &str = "exited";
    /// Per-CPU counters and histograms of the TCP probe.
    pub const TCP_BANK: &str = "tcp_bank";
    /// TCP counters by cgroup, in two banks.
    pub const TCP_ROWS: [&str; 2] = ["tcp_rows_a", "tcp_rows_b"];
    /// Bytes and connections by flow, in two banks.
    pub const FLOW_ROWS: [&str; 2] = ["flow_rows_a", "flow_rows_b"];
    /// What the TCP probe remembers of each socket, kept by the kernel in the socket itself.
    pub const TCP_SOCKETS: &str = "tcp_sockets";
    /// The same by the socket's address, where the kernel keeps nothing in sockets.
    pub const TCP_BY_ADDRESS: &str = "tcp_by_address";
    /// Listening ports, used only while sockets older than the agent are adopted.
    pub const TCP_LISTENERS: &str = "tcp_listeners";
    /// Per-CPU counters of the disk probe.
    pub const DISK_BANK: &str = "disk_bank";
    /// Disk counters and histograms by device and operation, per CPU.
    pub const DISK_ROWS: &str = "disk_rows";
    /// Disk counters by cgroup and operation, in two banks.
    pub const DISK_WORKLOAD_ROWS: [&str; 2] = ["disk_work_a", "disk_work_b"];
    /// Per-CPU counters of the UDP probe.
    pub const UDP_BANK: &str = "udp_bank";
    /// Bytes and datagrams by flow, in two banks.
    pub const UDP_ROWS: [&str; 2] = ["udp_rows_a", "udp_rows_b"];
}

/// Programs, as `bpftool prog` shows them.
pub mod program {
    /// Notes the path of a new cgroup; tracepoint `cgroup_mkdir`.
    pub const CGROUP_MKDIR: &str = "cgroup_mkdir";
    /// Notes that nothing refers to a cgroup any more; tracepoint `cgroup_release`.
    pub const CGROUP_RELEASE: &str = "cgroup_release";
    /// Counts execs; tracepoint `sched_process_exec`.
    pub const PROCESS_EXEC: &str = "process_exec";
    /// Counts new processes; tracepoint `sched_process_fork`.
    pub const PROCESS_FORK: &str = "process_fork";
    /// Counts exits by outcome, lifetimes and OOM kills; tracepoint `sched_process_exit`.
    pub const PROCESS_EXIT: &str = "process_exit";
    /// Follows connections from their first state to their last; tracepoint `inet_sock_set_state`.
    pub const TCP_STATE: &str = "tcp_state";
    /// Counts resets sent; tracepoint `tcp_send_reset`.
    pub const TCP_RESET_SENT: &str = "tcp_reset_sent";
    /// Counts resets received; tracepoint `tcp_receive_reset`.
    pub const TCP_RESET_RECEIVED: &str = "tcp_reset_recv";
    /// Adds up what live connections moved since the last visit; iterator `bpf_sk_storage_map`.
    pub const TCP_SWEEP: &str = "tcp_sweep";
    /// Notes listening ports before adoption; iterator `task_file`.
    pub const TCP_LISTEN: &str = "tcp_listen";
    /// Adopts connections older than the agent; iterator `task_file`.
    pub const TCP_ADOPT: &str = "tcp_adopt";
    /// As `tcp_state`, where the kernel keeps nothing in sockets; the same tracepoint.
    pub const TCP_STATE_BY_ADDRESS: &str = "tcp_state_addr";
    /// Sweeps and adopts the connections of this network namespace, likewise; iterator `tcp`.
    pub const TCP_WALK: &str = "tcp_walk";
    /// Counts completed requests, their bytes and latencies; tracepoint `block_rq_complete`.
    pub const DISK_COMPLETE: &str = "disk_complete";
    /// Counts datagrams sent; tracepoint `sock_send_length`.
    pub const UDP_SEND: &str = "udp_send";
    /// Counts datagrams received; tracepoint `sock_recv_length`.
    pub const UDP_RECEIVE: &str = "udp_receive";
    /// Count datagrams sent, by address family, where there is no tracepoint; return of the functions of the same names.
    pub const UDP_SENDMSG: [&str; 2] = ["udp_sendmsg", "udpv6_sendmsg"];
    /// Count datagrams received, likewise.
    pub const UDP_RECVMSG: [&str; 2] = ["udp_recvmsg", "udpv6_recvmsg"];
    /// Count datagrams sent, by the peer's address family, where returns cannot be had either; kprobes on the functions of the same names.
    pub const UDP_TO_IP: [&str; 2] = ["ip_send_skb", "ip6_send_skb"];
    /// Counts datagrams received, likewise.
    pub const UDP_CONSUME: &str = "skb_consume_udp";
}
