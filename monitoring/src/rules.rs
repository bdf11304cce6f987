//! Rule files, and the operator's resource made from them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A rule file as Prometheus reads it.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// Its groups; rules of a group are evaluated in order.
    pub groups: Vec<Group>,
}

/// A group of rules.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Rule {
    /// Records an expression's value as a series.
    Recording(Recording),
    /// Fires while an expression has a value.
    Alerting(Alert),
}

/// A recording rule.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// The series' name.
    pub record: String,
    /// PromQL.
    pub expr: String,
}

/// An alerting rule.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Its name.
    pub alert: String,
    /// PromQL.
    pub expr: String,
    /// How long it must hold.
    #[serde(rename = "for")]
    pub hold: String,
    /// Labels of the alert.
    pub labels: BTreeMap<String, String>,
    /// Texts for people.
    pub annotations: BTreeMap<String, String>,
}

impl Rule {
    /// The rule's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Recording(rule) => &rule.record,
            Self::Alerting(alert) => &alert.alert,
        }
    }

    /// Its PromQL.
    pub fn expr(&self) -> &str {
        match self {
            Self::Recording(rule) => &rule.expr,
            Self::Alerting(alert) => &alert.expr,
        }
    }
}

impl RuleFile {
    /// Parses a rule file.
    ///
    /// # Errors
    /// When it is none, or has a field that no rule has.
    pub fn parse(text: &str) -> Result<Self> {
        serde_yaml_ng::from_str(text).context("not a rule file")
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.groups.iter().flat_map(|group| &group.rules)
    }

    /// The alerting rules.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.rules().filter_map(|rule| match rule {
            Rule::Alerting(alert) => Some(alert),
            Rule::Recording(_) => None,
        })
    }
}

const HEAD: &str =
    "# Made by `cargo xtask docs` from recording.rules.yaml and alerts.rules.yaml. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: siskin
  namespace: siskin
  labels:
    app.kubernetes.io/name: siskin
spec:
  groups:
";

/// The operator's resource with the groups of these rule files: the same lines, further in, so that comments stay.
///
/// # Errors
/// When a file has no line `groups:`.
pub fn prometheus_rule(files: &[String]) -> Result<String> {
    let mut text = HEAD.to_owned();
    for file in files {
        let (_, groups) = file.split_once("\ngroups:\n").context("a rule file without a line `groups:`")?;
        for line in groups.lines() {
            if !line.is_empty() {
                text.push_str("  ");
                text.push_str(line);
            }
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_refused() {
        let text = |field| format!("groups: [{{name: a, rules: [{{record: b, {field}: up}}]}}]");
        assert!(RuleFile::parse(&text("expr")).is_ok());
        assert!(RuleFile::parse(&text("exp")).is_err());
    }
}
