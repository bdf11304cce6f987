//! What the budget says of itself: a line in the log when something changes, and metrics.

use super::{Budget, allocation::Setting};
use crate::metrics::{self, Exposition};

impl Budget {
    /// One line about a change that is worth one: what was exact is not any more or is again, or
    /// twice or half as much is sampled.
    pub(super) fn explain(&self, before: &[Setting], after: &[Setting]) -> Option<String> {
        let weight = |setting: &Setting| setting.period * setting.duty * setting.periods;
        let is_worth = |(before, after): (&Setting, &Setting)| {
            let (before, after) = (weight(before), weight(after));
            before != after && (before == 1 || after == 1 || before >= 2 * after || after >= 2 * before)
        };
        let changes: Vec<_> = self.probes.iter().zip(before.iter().zip(after)).collect();
        if !changes.iter().any(|(_, pair)| is_worth(*pair)) {
            return None;
        }
        let budget = self.bucket.as_ref()?.budget_cores();
        let lines: Vec<_> = changes
            .iter()
            .filter(|(_, pair)| is_worth(*pair))
            .map(|(of, (_, after))| of.explain(after))
            .collect();
        Some(format!(
            "budget {:.1}m, of which the process {:.2}m: {}",
            budget * 1e3,
            self.fixed_cores * 1e3,
            lines.join("; ")
        ))
    }

    /// Describes cost and settings as metrics.
    pub fn describe(&self, out: &mut Exposition) {
        self.meter.describe(out);
        for of in &self.probes {
            out.gauge(&metrics::PROBE_ATTACH, &[of.probe.name()], of.attach_cost_seconds());
        }
        for (item, seconds) in &self.largest_item_seconds {
            out.gauge(&metrics::BUDGET_LARGEST_ITEM, &[item], *seconds);
        }
        let Some(bucket) = self.bucket.as_ref() else { return };
        if bucket.budget_cores().is_finite() {
            out.gauge(&metrics::BUDGET_CPU, &[], bucket.budget_cores());
            out.gauge(&metrics::BUDGET_BUCKET, &[], bucket.level_seconds());
            out.gauge(&metrics::BUDGET_DEBT, &[], bucket.debt_seconds());
        }
        for setting in self.settings() {
            let duty = if setting.detached { 0.0 } else { 1.0 / setting.parts() };
            out.gauge(&metrics::BUDGET_DUTY, &[setting.probe.name()], duty);
        }
    }
}
