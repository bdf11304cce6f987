//! The time as Prometheus wants it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of Unix time.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64())
}
