//! What was read, described as metrics.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prometheus::{TextEncoder, core::Collector as _};
use siskin_ebpf::Probe;

use super::{Snapshot, State};
use crate::{
    cardinality::Bound,
    flows::Protocol,
    kernel::hook::State as Became,
    metrics::{self, Exposition, NANOS},
    readiness::Readiness,
};

impl State {
    /// Describes everything.
    pub(super) fn describe(&self) -> Snapshot {
        let mut out = Exposition::default();
        for reader in &self.readers {
            reader.describe(&self.workloads, &mut out);
        }
        let runs = |probe| self.readers.iter().any(|reader| reader.probe() == probe);
        let protocols: Vec<_> = [(Probe::Tcp, Protocol::Tcp), (Probe::Udp, Protocol::Udp)]
            .into_iter()
            .filter_map(|(probe, protocol)| runs(probe).then_some(protocol))
            .collect();
        if !protocols.is_empty() {
            self.flows.describe(&protocols, &self.workloads, &mut out);
        }
        self.describe_errors(&mut out);
        self.describe_build(&mut out);
        self.describe_probes(&mut out);
        self.describe_programs(&mut out);
        self.describe_maps(&mut out);
        let mut text = out.into_text();
        // Fails for a family without samples, which this one does not have.
        if let Err(error) = TextEncoder::new().encode_utf8(&self.process.collect(), &mut text) {
            tracing::warn!("cannot describe the process: {error}");
        }
        let is_read = |probe: Probe| self.readings.get(probe.name()).is_none_or(|reading| reading.success);
        Snapshot { text: text.into(), readiness: Readiness::of(&self.kernel.hooks, is_read) }
    }

    /// The errors of what may be estimated. Several probes may add to a metric; their events are
    /// sampled independently.
    fn describe_errors(&self, out: &mut Exposition) {
        let mut variances: BTreeMap<&str, f64> = BTreeMap::new();
        for reader in self.readers.iter().filter(|reader| self.budget.may_sample(reader.probe())) {
            for (metric, variance) in reader.variances(self.budget.lacking_seconds(reader.probe())) {
                *variances.entry(metric.name).or_default() += variance;
            }
        }
        for (metric, variance) in variances {
            out.gauge(&metrics::STANDARD_ERROR, &[metric], variance.sqrt());
        }
        self.errors.describe(&self.workloads, out);
    }

    fn describe_build(&self, out: &mut Exposition) {
        let build = [env!("CARGO_PKG_VERSION"), env!("SISKIN_REVISION"), env!("SISKIN_RUSTC")];
        out.gauge(&metrics::BUILD_INFO, &build, 1.0);
        let uname = rustix::system::uname();
        let kernel = [&*uname.release().to_string_lossy(), &*uname.machine().to_string_lossy()];
        out.gauge(&metrics::KERNEL_INFO, &kernel, 1.0);
    }

    fn describe_probes(&self, out: &mut Exposition) {
        for probe in Probe::ALL {
            let up = self.asked.enabled.contains(&probe) && self.kernel.is_up(probe);
            out.gauge(&metrics::PROBE_UP, &[probe.name()], f64::from(up));
        }
        // Two programs of a probe may sit on one hook; if they fare alike they are one series.
        let hooks =
            self.kernel.hooks.iter().filter(|of| !matches!(of.state, Became::Replaced(_))).map(|of| {
                let reason = metrics::fit(of.state.reason(), metrics::REASON_BYTES);
                (of.hook.probe.name(), of.hook.point.name(), of.state.name(), reason)
            });
        for (probe, hook, state, reason) in hooks.collect::<BTreeSet<_>>() {
            out.gauge(&metrics::PROBE_HOOK_INFO, &[probe, &hook, state, &reason], 1.0);
        }
        for (probe, reading) in &self.readings {
            out.gauge(&metrics::COLLECT_SECONDS, &[probe], reading.seconds);
            out.gauge(&metrics::COLLECT_SUCCESS, &[probe], f64::from(reading.success));
            out.gauge(&metrics::COLLECT_TIMESTAMP, &[probe], reading.until_seconds);
        }
        out.gauge(&metrics::HEARTBEAT, &[], self.until_seconds());
        self.workloads.describe(out);
        let Bound { series, bytes } = self.asked.bound;
        out.gauge(&metrics::SERIES_LIMIT, &[], series as f64);
        out.gauge(&metrics::SCRAPE_LIMIT, &[], bytes as f64);
        for reader in &self.readers {
            let period = self.kernel.control.rate(reader.probe()).period;
            let ratio = self.budget.ratio(reader.probe(), period);
            out.gauge(&metrics::SAMPLING_RATIO, &[reader.probe().name()], ratio);
        }
    }

    fn describe_programs(&self, out: &mut Exposition) {
        let mut missed: HashMap<&str, u64> = HashMap::new();
        for program in &self.kernel.programs {
            let Ok(counted) = program.counted() else { continue };
            let seconds = counted.run_time_ns as f64 / NANOS;
            out.counter(&metrics::KERNEL_STATISTICS_RUN_SECONDS, &[program.name], seconds);
            out.counter(&metrics::KERNEL_STATISTICS_RUNS, &[program.name], counted.runs as f64);
            *missed.entry(program.probe.name()).or_default() += counted.recursion_misses;
        }
        for (probe, misses) in missed {
            out.counter(&metrics::LOST, &[probe, "recursion"], misses as f64);
        }
        self.budget.describe(out);
    }

    fn describe_maps(&self, out: &mut Exposition) {
        out.gauge(&metrics::BUDGET_MEMORY, &[], self.asked.memory_limit_bytes as f64);
        out.gauge(&metrics::MAPS_MEMORY, &[], self.kernel.maps_bytes as f64);
        for reader in &self.readers {
            for (map, entries) in reader.map_entries(&self.kernel.control) {
                out.gauge(&metrics::MAP_ENTRIES, &[map], entries as f64);
                if let Some(plan) = self.asked.plans.iter().find(|plan| plan.name == map) {
                    out.gauge(&metrics::MAP_CAPACITY, &[map], plan.entries.into());
                }
            }
        }
    }
}
