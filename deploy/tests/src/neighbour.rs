//! What the neighbour does in a round: known work that an agent in another container has to see.

/// Times it runs itself.
pub const EXECS: u64 = 5;
/// Connections over loopback, both ends its own.
pub const CONNECTIONS: u64 = 5;
/// Bytes from client to server on each.
pub const SENT: u64 = 1_000;
/// Bytes from server to client on each.
pub const RECEIVED: u64 = 5_000;
/// The service's port.
pub const PORT: u16 = 7070;
/// Direct writes of [`BLOCK`] bytes each.
pub const WRITES: u64 = 10;
/// Bytes of a write.
pub const BLOCK: usize = 64 << 10;
