//! Settings that keep still while the measured load wobbles.

use super::{Demand, MAX_DUTY, Setting, cost_cores, objective, search::with_period, total_cores};

/// Settings are kept while their objective is at most this many times that of the wanted ones.
pub const KEPT_OBJECTIVE: f64 = 1.15;
/// Ratio of two duties, or of two weights N D, from which it is worth starting a new duty cycle.
pub const DUTY_STEP: f64 = 1.2;

/// Returns the settings to use next: the current ones while they fit and are about as good as the
/// wanted ones, so that they keep still while the measured load wobbles; else the wanted ones, at
/// once. Allocate `wanted` for a tenth less than `spend_cores`: what just fits would not fit at the
/// next tick.
pub fn settle(
    current: &[Setting],
    mut wanted: Vec<Setting>,
    demands: &[Demand],
    spend_cores: f64,
) -> Vec<Setting> {
    let same = |(a, b): (&Setting, &Setting)| {
        let is_rarer = a.duty > 1 && b.duty > 1 && a.periods != b.periods;
        a.probe == b.probe && a.detached == b.detached && !is_rarer
    };
    if current.len() != wanted.len() || !current.iter().zip(&wanted).all(same) {
        return wanted;
    }
    // What is changed for one probe alone leaves half of the room that the wanted settings leave.
    let limit = (total_cores(demands, &wanted) + spend_cores) / 2.0;
    let room = |settings: &[Setting], index: usize| {
        limit - (total_cores(demands, settings) - cost_cores(&demands[index], &settings[index]))
    };
    let mut kept = current.to_vec();
    for (index, setting) in wanted.iter().enumerate() {
        if setting.is_exact() && cost_cores(&demands[index], setting) <= room(&kept, index) {
            kept[index] = *setting;
        }
    }
    if total_cores(demands, &kept) <= spend_cores
        && objective(demands, &kept) <= KEPT_OBJECTIVE * objective(demands, &wanted)
    {
        return kept;
    }
    // A change of duty starts a new duty cycle. Instead of a small one the period changes, or,
    // where that does not fit, the duty by more.
    for (index, before) in current.iter().enumerate() {
        let after = wanted[index];
        let (duty, other) = (before.duty as f64, after.duty as f64);
        if before.duty > 1 && duty != other && duty.max(other) < DUTY_STEP * duty.min(other) {
            let room = room(&wanted, index);
            let setting = [before.duty, MAX_DUTY.min((DUTY_STEP * duty).ceil() as u64)]
                .into_iter()
                .filter_map(|duty| with_period(&demands[index], &Setting { duty, ..after }, room))
                .find(|setting| setting.weight() <= DUTY_STEP * after.weight());
            wanted[index] = setting.unwrap_or(after);
        }
    }
    wanted
}
