//! Metrics in the text format, parsed: independent of the code that writes them.

use std::collections::{BTreeSet, HashSet};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name, with the suffix of a histogram's part.
    pub name: String,
    /// Labels in the order written.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// The samples.
    pub samples: Vec<Sample>,
    /// The text they were parsed from.
    pub text: String,
}

impl Metrics {
    /// Parses the text format 0.0.4.
    ///
    /// # Panics
    /// On a line that is not of that format, or a series that is there twice.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples: Vec<_> = lines.map(sample).collect();
        let mut seen = HashSet::new();
        for Sample { name, labels, .. } in &samples {
            // The order in which labels are written makes no other series.
            let labels: BTreeSet<_> = labels.iter().collect();
            assert!(seen.insert((name, labels.clone())), "{name} {labels:?} is there twice in\n{text}");
        }
        Self { samples, text: text.to_owned() }
    }

    /// Whether all that probes saw before this Unix time is in them. A probe that cannot be read
    /// says nothing of it.
    pub fn are_since(&self, unix_seconds: f64) -> bool {
        self.find("siskin_collect_timestamp_seconds", &[]).all(|sample| {
            let (_, probe) = sample.labels.first().expect("a probe");
            sample.value >= unix_seconds || self.sum("siskin_collect_success", &[("probe", probe)]) == 0.0
        })
    }

    /// The samples of this name that have all these labels.
    pub fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| {
                    sample.labels.iter().any(|(other, has)| other == label && has == value)
                })
        })
    }

    /// The sum of the samples of this name that have all these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }

    /// The value of the one sample of this name that has all these labels.
    ///
    /// # Panics
    /// When there is none or more than one.
    pub fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<_> = self.find(name, labels).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:#?}");
        found[0].value
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    let (name, mut rest) = series.split_once('{').unwrap_or((series, "}"));
    let mut labels = Vec::new();
    while rest != "}" {
        let (label, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
        let mut text = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, other)) => text.push(other),
                    None => panic!("label without an end: {line}"),
                },
                Some((at, '"')) => break at + 1,
                Some((_, other)) => text.push(other),
                None => panic!("label without an end: {line}"),
            }
        };
        labels.push((label.to_owned(), text));
        rest = quoted[end..].strip_prefix(',').unwrap_or(&quoted[end..]);
    }
    Sample { name: name.to_owned(), labels, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_parsed_with_escaped_labels() {
        let metrics =
            Metrics::parse("# HELP a b\na 1\nb_total{x=\"1\",y=\"q\\\"\\\\,}\"} 2.5\nb_total{x=\"2\"} 3\n");
        assert_eq!(metrics.one("a", &[]), 1.0);
        assert_eq!(metrics.one("b_total", &[("y", "q\"\\,}")]), 2.5);
        assert_eq!(metrics.sum("b_total", &[]), 5.5);
        assert_eq!(metrics.sum("c", &[]), 0.0);
    }

    #[test]
    #[should_panic(expected = "is there twice")]
    fn a_series_that_is_there_twice_is_refused() {
        Metrics::parse("a{x=\"1\",y=\"2\"} 1\na{x=\"2\",y=\"1\"} 1\na{y=\"2\",x=\"1\"} 1\n");
    }
}
