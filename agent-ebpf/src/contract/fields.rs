//! Every kernel fact the programs take from BTF, in one list that both sides expand: the kernel side into a
//! read-only global each, user space into a table of what to look up before loading.

/// The value of an optional global whose field this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Whether a probe can run without a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it the probe is not loaded.
    Required,
    /// Without it the global is [`ABSENT`] and the program takes another way.
    Optional,
}

/// Where a member of at most eight bits lies, packed into a global.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The byte that holds it.
    pub offset_bytes: u32,
    /// Its lowest bit in that byte.
    pub shift: u32,
    /// How many bits it has.
    pub size: u32,
}

impl Bits {
    /// The value of the global; `None` when the member is not inside one byte or lies too far out.
    pub const fn pack(self) -> Option<u32> {
        let Self { offset_bytes, shift, size } = self;
        if offset_bytes > 0xffff || size == 0 || shift + size > 8 {
            return None;
        }
        Some(offset_bytes | shift << 16 | size << 24)
    }

    /// The inverse of [`Self::pack`].
    #[inline(always)]
    pub const fn unpack(global: u32) -> Self {
        Self { offset_bytes: global & 0xffff, shift: global >> 16 & 0xff, size: global >> 24 }
    }

    /// The member's value in its byte.
    #[inline(always)]
    pub const fn of(self, byte: u8) -> u32 {
        (byte as u32 >> self.shift) & ((1 << self.size) - 1)
    }
}

/// Expands `$callback!` with the list of facts.
///
/// * `fields`: `GLOBAL = "structure" "path" bytes Need [Probes]`, the byte offset of a member of that many bytes.
/// * `bits`: `GLOBAL = "structure" "path" Need [Probes]`, the [`Bits`] of a member of at most eight bits, bitfield or not.
/// * `enumerators`: `GLOBAL = "NAME" default`, the value of an enumerator, or the default where the kernel had a macro.
/// * `flags`: `GLOBAL = "tracepoint" argument`, 1 when that argument of a tracepoint exists and is a bool.
/// * `arguments`: `GLOBAL = "function"`, how many arguments a function has, or [`ABSENT`].
#[macro_export]
macro_rules! kernel_facts {
    ($callback:ident) => {
        $callback! {
            fields {
                CSS_SET_CGROUP = "css_set" "dfl_cgrp" 8 Required [Process];
                CGROUP_KN = "cgroup" "kn" 8 Required [Cgroup, Process, Tcp, Disk, Udp];
                KN_ID = "kernfs_node" "id" 8 Required [Cgroup, Process, Tcp, Disk, Udp];
                TASK_PID = "task_struct" "pid" 4 Required [Process];
                TASK_TGID = "task_struct" "tgid" 4 Required [Process];
                TASK_START = "task_struct" "start_time" 8 Required [Process];
                TASK_LEADER = "task_struct" "group_leader" 8 Required [Process];
                TASK_SIGNAL = "task_struct" "signal" 8 Required [Process];
                TASK_EXIT_CODE = "task_struct" "exit_code" 4 Required [Process];
                TASK_CGROUPS = "task_struct" "cgroups" 8 Required [Process];
                SIGNAL_LIVE = "signal_struct" "live" 4 Required [Process];
                SIGNAL_FLAGS = "signal_struct" "flags" 4 Required [Process];
                SIGNAL_EXIT_CODE = "signal_struct" "group_exit_code" 4 Required [Process];
                SIGNAL_OOM_MM = "signal_struct" "oom_mm" 8 Required [Process];
                SK_FAMILY = "sock" "__sk_common.skc_family" 2 Required [Tcp, Udp];
                SK_STATE = "sock" "__sk_common.skc_state" 1 Required [Tcp];
                SK_NUM = "sock" "__sk_common.skc_num" 2 Required [Tcp, Udp];
                SK_DPORT = "sock" "__sk_common.skc_dport" 2 Required [Tcp, Udp];
                SK_DADDR = "sock" "__sk_common.skc_daddr" 4 Required [Tcp, Udp];
                SK_V6_DADDR = "sock" "__sk_common.skc_v6_daddr" 16 Required [Tcp, Udp];
                SK_NET = "sock" "__sk_common.skc_net.net" 8 Required [Tcp];
                NET_INUM = "net" "ns.inum" 4 Required [Tcp];
                SK_PROTOCOL = "sock" "sk_protocol" 2 Required [Tcp, Udp];
                SK_TYPE = "sock" "sk_type" 2 Required [Udp];
                SK_ERR = "sock" "sk_err" 4 Required [Tcp];
                SK_FLAGS = "sock" "__sk_common.skc_flags" 8 Required [Tcp];
                SK_CGROUP = "sock" "sk_cgrp_data.cgroup" 8 Required [Tcp, Udp];
                SK_LOCK_OWNED = "sock" "sk_lock.owned" 4 Optional [Tcp];
                SK_LOCK_SPIN = "sock" "sk_lock.slock.rlock.raw_lock.val.counter" 4 Optional [Tcp];
                SK_LOCK_SPIN_RT = "sock" "sk_lock.slock.lock.owner" 8 Optional [Tcp];
                WALK_BATCH = "bpf_tcp_iter_state" "batch" 8 Optional [Tcp];
                SKB_SK = "sk_buff" "sk" 8 Required [Udp];
                SKB_NEXT = "sk_buff" "next" 8 Required [Udp];
                SKB_LEN = "sk_buff" "len" 4 Required [Udp];
                SKB_HEAD = "sk_buff" "head" 8 Required [Udp];
                SKB_DATA = "sk_buff" "data" 8 Required [Udp];
                SKB_TRANSPORT = "sk_buff" "transport_header" 2 Required [Udp];
                SOCKET_SK = "socket" "sk" 8 Required [Tcp];
                TCP_BYTES_SENT = "tcp_sock" "bytes_sent" 8 Required [Tcp];
                TCP_BYTES_RETRANS = "tcp_sock" "bytes_retrans" 8 Required [Tcp];
                TCP_BYTES_RECEIVED = "tcp_sock" "bytes_received" 8 Required [Tcp];
                TCP_TOTAL_RETRANS = "tcp_sock" "total_retrans" 4 Required [Tcp];
                INET_SPORT = "inet_sock" "inet_sport" 2 Required [Tcp];
                TCP_SRTT_US = "tcp_sock" "srtt_us" 4 Required [Tcp];
                RQ_QUEUE = "request" "q" 8 Required [Disk];
                RQ_CMD_FLAGS = "request" "cmd_flags" 4 Required [Disk];
                RQ_FLAGS = "request" "rq_flags" 4 Required [Disk];
                RQ_DATA_LEN = "request" "__data_len" 4 Required [Disk];
                RQ_BIO = "request" "bio" 8 Required [Disk];
                RQ_PART = "request" "part" 8 Required [Disk];
                RQ_START = "request" "start_time_ns" 8 Required [Disk];
                RQ_IO_START = "request" "io_start_time_ns" 8 Required [Disk];
                RQ_DISK = "request" "rq_disk" 8 Optional [Disk];
                QUEUE_DISK = "request_queue" "disk" 8 Optional [Disk];
                DISK_MAJOR = "gendisk" "major" 4 Required [Disk];
                DISK_MINOR = "gendisk" "first_minor" 4 Required [Disk];
                BIO_BLKG = "bio" "bi_blkg" 8 Optional [Disk];
                BLKG_BLKCG = "blkcg_gq" "blkcg" 8 Optional [Disk];
                BLKCG_CGROUP = "blkcg" "css.cgroup" 8 Optional [Disk];
                CGROUP_ROOT = "cgroup" "root" 8 Required [Cgroup, Disk];
                ROOT_HIERARCHY = "cgroup_root" "hierarchy_id" 4 Required [Cgroup, Disk];
                ROOT_CONTROLLERS = "cgroup_root" "subsys_mask" 4 Required [Cgroup];
            }
            bits {
                SK_USERLOCKS = "sock" "sk_userlocks" Required [Udp];
            }
            enumerators {
                SOCK_DONE = "SOCK_DONE" 1;
                RQF_FLUSH_SEQ = "__RQF_FLUSH_SEQ" 4;
                RQF_IO_STAT = "__RQF_IO_STAT" 13;
                IO_CONTROLLER = "io_cgrp_id" 31;
            }
            flags {
                EXIT_SAYS_LAST = "sched_process_exit" 1;
            }
            arguments {
                UDP_RECEIVE_ARGUMENTS = "udp_recvmsg";
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_packing_and_pick_their_member_out_of_its_byte() {
        let bits = Bits { offset_bytes: 530, shift: 3, size: 4 };
        assert_eq!(bits.pack().map(Bits::unpack), Some(bits));
        assert_eq!(bits.of(0b1101_0111), 0b1010);
        assert_eq!(Bits { offset_bytes: 7, shift: 0, size: 8 }.of(0xfe), 0xfe);
    }

    #[test]
    fn a_member_across_bytes_is_refused() {
        assert_eq!(Bits { offset_bytes: 0, shift: 6, size: 4 }.pack(), None);
        assert_eq!(Bits { offset_bytes: 1 << 16, shift: 0, size: 1 }.pack(), None);
    }
}
