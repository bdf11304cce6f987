//! The text format 0.0.4, written as the samples come: thousands of series in one reading, so none is made twice and none is an
//! object of its own.

use std::fmt::Write as _;

use siskin_ebpf::Histogram;

use crate::metrics::{ALL, Kind, Metric, NANOS};

/// Samples, gathered by metric.
#[derive(Debug)]
pub struct Exposition {
    /// By [`Metric::number`].
    families: Vec<Family>,
}

/// The samples of a metric, each one line, or the lines of a histogram.
#[derive(Clone, Debug)]
struct Family {
    text: String,
    /// Where each sample begins.
    starts: Vec<usize>,
    is_sorted: bool,
}

impl Default for Exposition {
    fn default() -> Self {
        let family = Family { text: String::new(), starts: Vec::new(), is_sorted: true };
        Self { families: vec![family; ALL.len()] }
    }
}

impl Exposition {
    /// Adds a counter's value.
    pub fn counter(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.number(metric, labels, value);
    }

    /// Adds a gauge's value.
    pub fn gauge(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.number(metric, labels, value);
    }

    fn number(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        let family = self.begin(metric, labels);
        line(&mut family.text, metric, "", labels, None, value);
        family.end();
    }

    /// Adds a histogram of nanoseconds, as seconds, with bounds at these powers of two.
    pub fn histogram<const MIN_EXP: u32, const N: usize>(
        &mut self,
        metric: &'static Metric,
        labels: &[&str],
        histogram: &Histogram<MIN_EXP, N>,
        bounds: impl IntoIterator<Item = u32>,
    ) {
        debug_assert_eq!(metric.kind, Kind::Histogram);
        let family = self.begin(metric, labels);
        let text = &mut family.text;
        let (mut index, mut count) = (0, 0);
        for exponent in bounds {
            let bound = 1u64 << exponent;
            while Histogram::<MIN_EXP, N>::upper_bound(index).is_some_and(|upper| upper <= bound) {
                count += histogram.buckets[index];
                index += 1;
            }
            line(text, metric, "_bucket", labels, Some(bound as f64 / NANOS), count as f64);
        }
        let count = histogram.buckets.iter().sum::<u64>() as f64;
        line(text, metric, "_bucket", labels, Some(f64::INFINITY), count);
        line(text, metric, "_sum", labels, None, histogram.sum as f64 / NANOS);
        line(text, metric, "_count", labels, None, count);
        family.end();
    }

    fn begin(&mut self, metric: &'static Metric, labels: &[&str]) -> &mut Family {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let family = &mut self.families[metric.number];
        family.starts.push(family.text.len());
        family
    }

    /// The families by name, each with its samples in order.
    pub fn into_text(self) -> String {
        let mut families: Vec<_> =
            ALL.iter().zip(self.families).filter(|(_, family)| !family.starts.is_empty()).collect();
        families.sort_unstable_by_key(|(metric, _)| metric.name);
        let bytes = families.iter().map(|(metric, family)| family.text.len() + head_bytes(metric)).sum();
        let mut text = String::with_capacity(bytes);
        for (metric, family) in families {
            head(&mut text, metric);
            family.append_to(&mut text);
        }
        text
    }
}

impl Family {
    /// Ends a sample. Those who have many give them in order, so that nothing is left to sort.
    fn end(&mut self) {
        if let [.., before, start] = *self.starts {
            self.is_sorted &= self.text[before..start] <= self.text[start..];
        }
    }

    fn append_to(self, out: &mut String) {
        if self.is_sorted {
            out.push_str(&self.text);
            return;
        }
        let ends = self.starts.iter().skip(1).copied().chain([self.text.len()]);
        let mut samples: Vec<_> =
            self.starts.iter().zip(ends).map(|(start, end)| &self.text[*start..end]).collect();
        samples.sort_unstable();
        samples.into_iter().for_each(|sample| out.push_str(sample));
    }
}

/// Most bytes of the comments before a family.
pub fn head_bytes(metric: &Metric) -> usize {
    "# HELP  \n# TYPE  histogram\n".len() + 2 * metric.name.len() + metric.help().len()
}

fn head(text: &mut String, metric: &Metric) {
    let Metric { name, kind, .. } = metric;
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", metric.help());
}

fn line(text: &mut String, metric: &Metric, suffix: &str, labels: &[&str], bound: Option<f64>, value: f64) {
    text.push_str(metric.name);
    text.push_str(suffix);
    let mut separator = '{';
    for (name, value) in metric.labels.iter().zip(labels) {
        text.push(separator);
        text.push_str(name);
        text.push_str("=\"");
        escape(text, value);
        text.push('"');
        separator = ',';
    }
    if let Some(bound) = bound {
        text.push(separator);
        text.push_str("le=\"");
        if bound.is_infinite() {
            text.push_str("+Inf")
        } else {
            number(text, bound)
        }
        text.push('"');
    }
    if bound.is_some() || !labels.is_empty() {
        text.push('}');
    }
    text.push(' ');
    number(text, value);
    text.push('\n');
}

fn escape(text: &mut String, value: &str) {
    if !value.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        text.push_str(value);
        return;
    }
    for character in value.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\\' | '"' => text.extend(['\\', character]),
            _ => text.push(character),
        }
    }
}

/// Whole numbers below this are all there are, so they can be written as such, which takes a fifth of the time.
const WHOLE: f64 = 9_007_199_254_740_992.0;

fn number(text: &mut String, value: f64) {
    let whole = value as u64;
    let _ = if value < WHOLE && whole as f64 == value && value.is_sign_positive() {
        write!(text, "{whole}")
    } else {
        write!(text, "{value}")
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siskin_ebpf::{Latency, Words as _};

    use super::*;
    use crate::metrics::{PROCESS_COMM_EXECS, TCP_CONNECT};

    #[test]
    fn an_observation_at_a_bound_is_below_it_and_one_past_it_is_not() {
        let mut bank = siskin_ebpf::TcpBank::zero();
        for value in [1 << 20, (1 << 20) + 1, 1 << 40] {
            bank.connect.buckets[Latency::index(value)] += 1;
            bank.connect.sum += value;
        }
        let mut out = Exposition::default();
        out.histogram(&TCP_CONNECT, &[], &bank.connect, 19..=21);
        let text = out.into_text();
        for line in [
            "siskin_tcp_connect_seconds_bucket{le=\"0.000524288\"} 0",
            "siskin_tcp_connect_seconds_bucket{le=\"0.001048576\"} 1",
            "siskin_tcp_connect_seconds_bucket{le=\"0.002097152\"} 2",
            "siskin_tcp_connect_seconds_bucket{le=\"+Inf\"} 3",
            "siskin_tcp_connect_seconds_count 3",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    proptest! {
        /// What is written is what the prometheus crate writes.
        #[test]
        fn numbers_and_labels_are_written_as_others_do(
            value in prop_oneof![any::<f64>(), (0u64..=u64::MAX).prop_map(|whole| whole as f64), Just(-0.0)],
            comm in "[a-c\\\\\"\n\u{e9} ]{0,8}",
        ) {
            use prometheus::{TextEncoder, proto};
            let mut out = Exposition::default();
            out.counter(&PROCESS_COMM_EXECS, &[&comm], value);
            let mut pair = proto::LabelPair::default();
            pair.set_name("comm".to_owned());
            pair.set_value(comm);
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            let mut sample = proto::Metric::default();
            sample.set_counter(counter);
            sample.set_label(vec![pair]);
            let mut family = proto::MetricFamily::default();
            family.set_name(PROCESS_COMM_EXECS.name.to_owned());
            family.set_help(PROCESS_COMM_EXECS.help());
            family.set_field_type(proto::MetricType::COUNTER);
            family.mut_metric().push(sample);
            prop_assert_eq!(out.into_text(), TextEncoder::new().encode_to_string(&[family]).unwrap());
        }
    }

    #[test]
    fn samples_that_come_in_any_order_are_sorted() {
        let mut out = Exposition::default();
        for comm in ["b", "a", "c"] {
            out.counter(&PROCESS_COMM_EXECS, &[comm], 1.0);
        }
        let text = out.into_text();
        let lines: Vec<_> = text.lines().skip(2).collect();
        let sorted =
            ["a", "b", "c"].map(|comm| format!("siskin_process_comm_execs_total{{comm=\"{comm}\"}} 1"));
        assert_eq!(lines, sorted);
    }
}
